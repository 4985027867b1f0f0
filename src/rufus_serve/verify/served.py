"""Serves a model as long as it takes to verify it, in a process of its own."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rufus_serve import errors
from rufus_serve.batch.own_server import own_server
from rufus_serve.config.schema import HttpConfig, ServeConfig
from rufus_serve.errors import RufusError

_SHOWN_LINES = 20


@contextlib.contextmanager
def served(config: ServeConfig) -> Iterator[str]:
    """The URL of an endpoint that serves `config` on loopback, on a free port.

    Raises:
        RufusError: what `serve` ended with before it was ready, with the end of its log.
    """
    # Whoever asks is on this host and knows no keys.
    plain = config.model_copy(update={"api_key_file": None, "http": HttpConfig()})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rufus-verify-")))
        log = stack.enter_context((folder / "log").open("wb"))
        settings = write_settings(plain, folder)
        try:
            url = stack.enter_context(own_server([f"--config={settings}"], log=log)).url
        except RufusError as error:
            lines = (folder / "log").read_text(errors="replace").splitlines()
            text = "\n".join([str(error), *lines[-_SHOWN_LINES:]])
            raise errors.of(error.exit_code, text) from error
        yield url


def write_settings(config: ServeConfig, folder: Path) -> Path:
    """A settings file of `config` in `folder`."""
    path = folder / "settings.yaml"
    # JSON is YAML; what is default may be a value that a file cannot say.
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
    return path
