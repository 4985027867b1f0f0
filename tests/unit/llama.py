"""A small Llama's `config.json`."""

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,
    "dtype": "bfloat16",
}  # fmt: skip
