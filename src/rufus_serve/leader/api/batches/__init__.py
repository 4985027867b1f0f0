"""`/v1/files` and `/v1/batches`: requests kept on disk, and asked of ourselves."""
