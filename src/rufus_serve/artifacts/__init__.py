"""Artifacts made ahead of time: their identity, their files, and how a node gets its own."""
