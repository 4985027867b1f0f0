"""The CPU model code: partition, weights, KV cache, buckets and decoder."""
