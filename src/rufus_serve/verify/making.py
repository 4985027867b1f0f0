"""Makes a reference with transformers in float32, on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rufus_serve.artifacts.identity import identify_model
from rufus_serve.errors import ConfigError
from rufus_serve.verify.reference import PROMPTS, TOP, Choice, Prompt, Reference

Progress = Callable[[int, int], None]


def make_reference(folder: Path, *, num_tokens: int, progress: Progress) -> Reference:
    """`num_tokens` greedy tokens after each of `PROMPTS`, end of text ignored.

    Raises:
        ConfigError: transformers is not installed.
        ModelError: the checkpoint cannot be read.
    """
    identity = identify_model(folder)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            "a reference is made with transformers and torch: run this where the leader's "
            "environment is (pip install 'rufus-serve[leader]')"
        ) from error
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompts = []
    for done, text in enumerate(PROMPTS, start=1):
        tokens = tokenizer(text)["input_ids"]
        choices = _continued(model, tokens, num_tokens)
        prompts.append(Prompt(text=text, tokens=tuple(tokens), choices=choices))
        progress(done, len(PROMPTS))
    made_by = f"transformers {transformers.__version__}, float32"
    return Reference(model=identity, made_by=made_by, prompts=tuple(prompts))


def _continued(model: Any, tokens: list[int], count: int) -> tuple[Choice, ...]:
    import torch

    given, cache, choices = torch.tensor([tokens]), None, []
    with torch.inference_mode():
        for _ in range(count):
            output = model(given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            choices.append(_greedy(output.logits[0, -1].float().log_softmax(-1)))
            given = torch.tensor([[choices[-1].token]])
    return tuple(choices)


def _greedy(logprobs: Any) -> Choice:
    """The most likely token of `logprobs` [V]."""
    values, ids = logprobs.topk(min(TOP, len(logprobs)))
    top = dict(zip(ids.tolist(), values.tolist(), strict=True))
    token = int(ids[0])
    return Choice(token=token, logprob=top[token], top=top)
