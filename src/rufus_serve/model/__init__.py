"""A checkpoint's files, read without torch: config.json, weight files, the folder itself."""
