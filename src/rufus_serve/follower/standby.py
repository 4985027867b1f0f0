"""What a stand-by does while it waits: bring the weights near, whichever rank it will take."""

import logging
import threading
from pathlib import Path

from rufus_serve.artifacts.compiled_folder import is_compiled_by_nxdi
from rufus_serve.artifacts.fetch import fetch
from rufus_serve.artifacts.location import local_path
from rufus_serve.artifacts.read_ahead import read_ahead
from rufus_serve.config import ServeConfig
from rufus_serve.errors import RufusError
from rufus_serve.follower.runtimes import identity_of
from rufus_serve.model.weight_files import files_at_hand

_log = logging.getLogger(__name__)


def begin_reading(config: ServeConfig) -> None:
    """Read ahead on a thread of its own; whoever loads meanwhile is not kept waiting."""
    threading.Thread(target=_read, args=(config,), name="read-ahead", daemon=True).start()


def _read(config: ServeConfig) -> None:
    try:
        size = read_ahead(
            weights_of_every_rank(config), threads=config.artifacts.threads, progress=_quietly
        )
    except RufusError as error:
        # Loading meets it again, and reports it.
        _log.warning("cannot read ahead: %s", error)
        return
    _log.info("standing by with %.1f GB of weights in the page cache", size / 1e9)


def weights_of_every_rank(config: ServeConfig) -> list[Path]:
    """Files that a member of any rank may load; brought to this host, and checked.

    Raises:
        RufusError: as loading them would.
    """
    artifacts = config.artifacts
    if not artifacts.location:
        return files_at_hand(Path(config.model))
    if is_compiled_by_nxdi(artifacts.location):
        return _files_in(local_path(artifacts.location))
    fetched = fetch(
        artifacts.location,
        identity_of(config),
        node_rank=None,
        cache=artifacts.cache,
        threads=artifacts.threads,
        progress=_quietly,
    )
    return _files_in(fetched.folder)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _quietly(done: int, total: int, detail: str) -> None:
    _log.debug("%s: %d of %d", detail, done, total)
