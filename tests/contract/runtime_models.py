"""Tiny random checkpoints of every architecture, and transformers' answers for them."""

import functools
from pathlib import Path

import numpy as np
import torch
import transformers

VOCAB = 131
MAX_MODEL_LEN = 128

_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_QWEN_WINDOWS = {
    "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1,
    "num_key_value_heads": 1,
}  # fmt: skip

MODELS = {
    "llama": ("Llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72,
                        "tie_word_embeddings": True}),
    "llama3": ("Llama", {"attention_bias": True, "mlp_bias": True,
                         "rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 12}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": ("Qwen2", _QWEN_WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_attention_heads": 4}),
}  # fmt: skip


def write_model(folder: Path, name: str, *, max_shard_size: str = "1GB", **changes) -> Path:
    """A checkpoint of `MODELS[name]`, weights random but the same each time."""
    family, own = MODELS[name]
    settings = {
        "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 50, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "initializer_range": 0.2,
        "max_position_embeddings": MAX_MODEL_LEN, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**(settings | own | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            # Biases start at zero and norms at one, where leaving them out would go unseen.
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


class Reference:
    """transformers' float32 answers."""

    def __init__(self, folder: Path) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Of the last position, [V]."""
        with torch.inference_mode():
            return self._model(torch.tensor([tokens])).logits[0, -1].float().numpy()

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """Of every position, [T, V]."""
        with torch.inference_mode():
            return self._model(torch.tensor([tokens])).logits[0].float().log_softmax(-1).numpy()

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The next `count` tokens, whatever they are."""
        with torch.inference_mode():
            whole = self._model.generate(
                torch.tensor([tokens]), max_new_tokens=count, min_new_tokens=count,
                do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return whole[0, len(tokens) :].tolist()


@functools.cache
def reference(folder: Path) -> Reference:
    """The reference of a folder, loaded once."""
    return Reference(folder)
