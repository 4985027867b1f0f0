"""Which settings artifacts depend on, for what must know it without a checkpoint at hand."""

ARTIFACT_SETTINGS: dict[str, tuple[str, ...]] = {
    "cpu": ("runtime", "nodes"),
    "neuron": (
        "runtime", "nodes", "dtype", "weights", "max_model_len", "max_num_seqs", "block_size",
        "num_blocks", "buckets.prefill", "buckets.decode_batch", "buckets.context",
        "neuron.cores_per_node", "neuron.kv_layout", "neuron.cp_degree",
        "neuron.attention_dp_degree", "neuron.neuron_config", "neuron.target",
        "neuron.device_candidates", "speculation.method", "speculation.num_speculative_tokens",
        "speculation.draft_model",
    ),
}  # fmt: skip
"""By runtime, beside the model itself. Of other settings, artifacts stay what they are."""
