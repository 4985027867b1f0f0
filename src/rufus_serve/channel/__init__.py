"""Step channels: the leader's broadcasts out, the followers' answers back."""
