"""What a follower computes on: one interface, one package per kind of hardware."""
