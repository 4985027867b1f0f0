"""Serve a model: start followers and the endpoint, and keep them running.

Settings come from --config FILE, then RUFUS_* variables, then flags; later ones win.
Numbers in a list are separated by commas. Values in [] are defaults.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.cli.surroundings import keep_folder_off_import_path
from rufus_serve.config.environment import refused
from rufus_serve.config.keys import read_keys
from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.log import configure_logging
from rufus_serve.model.folder import check_folder, check_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting."""
    add_setting_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    config = resolve_arguments(args).config
    refuse_variables(os.environ)
    keep_folder_off_import_path(os.environ)
    if config.api_key_file:
        read_keys(config.api_key_file)
    refuse_missing_files(Path(config.model))
    configure_logging("supervisor", level=config.log_level)
    from rufus_serve.supervisor import serve

    return serve(config)


def refuse_variables(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for variables by which vLLM would open or guard something."""
    lines = refused(environ)
    if lines:
        raise ConfigError("\n".join(lines))


def refuse_missing_files(folder: Path) -> None:
    """See at once what the leader would miss only after followers have loaded for minutes.

    Raises:
        ModelError: `folder` is no checkpoint with a tokenizer.
    """
    check_folder(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json in it; give `model` a Hugging Face checkpoint folder"
        )
    check_tokenizer(folder)
