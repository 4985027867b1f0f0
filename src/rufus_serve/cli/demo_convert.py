"""Converts the demo model's GGUF file to a Hugging Face checkpoint in bfloat16."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import Progress

from rufus_serve.errors import ModelError

MODULES = ("torch", "transformers", "gguf", "accelerate", "safetensors")


def require_modules() -> None:
    """Raise `ModelError` unless everything that `convert` imports is installed."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"demo-model needs {', '.join(missing)}: pip install 'rufus-serve[cpu,demo]'"
        )


def convert(gguf: Path, out: Path, progress: Progress) -> None:
    """Write config, tokenizer, chat template and safetensors into the folder `out`."""
    # Read when transformers and tqdm are imported; nothing here needs the network.
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    task = progress.add_task("convert", total=None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_tqdm_hook(
        _tqdm_hook(lambda done, total: progress.update(task, completed=done, total=total))
    )
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    logging.set_tqdm_hook(None)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    task = progress.add_task("write", total=1)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _tidy(out, max_length=model.config.max_position_embeddings)
    progress.advance(task)


def _tqdm_hook(report: Callable[[int, int], None]) -> Callable[..., Any]:
    """A hook for transformers that reports a loop's progress instead of drawing a bar."""

    def hook(_factory: Any, arguments: tuple[Any, ...], _options: dict[str, Any]) -> Any:
        items = list(arguments[0])

        def reporting() -> Any:
            for done, item in enumerate(items, start=1):
                yield item
                report(done, len(items))

        return reporting()

    return hook


def _tidy(folder: Path, *, max_length: int) -> None:
    """Remove what the conversion leaves behind of its own workings."""
    _edit(folder / "config.json", drop=("_model_name_or_path", "pretraining_tp"))
    _edit(
        folder / "generation_config.json",
        drop=("_from_model_config", "output_attentions", "output_hidden_states"),
    )
    _edit(
        folder / "tokenizer_config.json",
        drop=("is_local", "local_files_only"),
        model_max_length=max_length,
    )


def _edit(path: Path, *, drop: tuple[str, ...], **changes: Any) -> None:
    content = json.loads(path.read_text())
    kept = {key: value for key, value in content.items() if key not in drop}
    path.write_text(json.dumps(kept | changes, indent=2) + "\n")
