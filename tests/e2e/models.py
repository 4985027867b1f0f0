"""Checkpoints and prompts of the end-to-end tests."""

import functools
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.contract import runtime_models
from tests.e2e.server import DEMO_MODEL, ROOT

VOCAB = 49152
MAX_MODEL_LEN = 4096
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_checkpoint(folder: Path, name: str, **changes: int) -> Path:
    """A random model of one architecture with the demo model's tokenizer."""
    runtime_models.write_model(
        folder, name, vocab_size=VOCAB, max_position_embeddings=MAX_MODEL_LEN, **changes
    )
    for file in _TOKENIZER:
        shutil.copy(DEMO_MODEL / file, folder)
    return folder


@functools.cache
def text_tokens() -> tuple[int, ...]:
    """Token ids of a long English text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokens = tokenizer((ROOT / "LICENSE").read_text(), verbose=False)["input_ids"]
    return tuple(tokens)


def prompt(length: int, *, start: int = 0) -> list[int]:
    """`length` tokens of English text; another `start` gives a prompt no cache has seen."""
    tokens = list(text_tokens()[start : start + length])
    assert len(tokens) == length
    return tokens


def assert_greedy(folder: Path, tokens: list[int], output: list[int]) -> None:
    """Fail unless transformers in float32, with eager attention, would have decoded `output`.

    One pass over prompt and output: each output token must be the best after those before it.
    """
    whole = torch.tensor([tokens + output[:-1]])
    with torch.inference_mode():
        logits = _reference(folder)(whole, logits_to_keep=len(output)).logits[0]
    assert output == logits.argmax(dim=-1).tolist(), (len(tokens), _gaps(logits, output))


def reference_logprobs(folder: Path, tokens: list[int]) -> np.ndarray:
    """Of every position, [T, V], as transformers computes them in float32."""
    with torch.inference_mode():
        logits = _reference(folder)(torch.tensor([tokens])).logits[0]
    return logits.log_softmax(dim=-1).numpy()


@functools.cache
def _reference(folder: Path) -> transformers.PreTrainedModel:
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def _gaps(logits: torch.Tensor, output: list[int]) -> list[float]:
    """How much worse than the best each output token is; a tie shows as almost 0."""
    chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    return (logits.max(dim=-1).values - chosen).tolist()
