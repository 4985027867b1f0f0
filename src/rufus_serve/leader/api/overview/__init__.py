"""The cluster at a glance: `/overview` as JSON and as a stream, and the page at `/ui`."""
