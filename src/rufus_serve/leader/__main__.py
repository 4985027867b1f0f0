"""`python -m rufus_serve.leader`, as the supervisor starts it."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path

from rufus_serve.config import ServeConfig
from rufus_serve.errors import EndpointError, LeaderError, RufusError
from rufus_serve.imports import imports_that_stay
from rufus_serve.leader.spec import config_of, read_spec
from rufus_serve.log import configure_logging
from rufus_serve.protocol.specs import SPEC_VARIABLE, LeaderSpec, last_word_file

_log = logging.getLogger("rufus_serve.leader")


def main() -> int:
    """Serve until told to stop; the process's exit code."""
    configure_logging("leader")
    try:
        spec = read_spec()
        config = config_of(spec)
        configure_logging("leader", level=config.log_level)
        with bind(config.host, config.port) as sock, _own_folder() as folder:
            set_environment(config)
            asyncio.run(_serve(spec, config, sock=sock, folder=folder))
    except RufusError as error:
        _log.error("%s", error)
        _leave_word(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # noqa: BLE001 - the process edge
        _log.exception("the leader failed unexpectedly")
        _leave_word(f"it failed unexpectedly: {type(error).__name__}: {error}")
        return LeaderError.exit_code
    return 0


async def _serve(
    spec: LeaderSpec, config: ServeConfig, *, sock: socket.socket, folder: str
) -> None:
    with imports_that_stay():
        from rufus_serve.leader.api.api_server import ApiServer

    await ApiServer(spec, config, sock=sock, folder=folder).run()


def _leave_word(error: str) -> None:
    """Write down why we end, beside the spec, for the supervisor to repeat."""
    with contextlib.suppress(KeyError, OSError):
        last_word_file(Path(os.environ[SPEC_VARIABLE])).write_text(error)


def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder inside the supervisor's, which removes it even if we are killed."""
    return tempfile.TemporaryDirectory(prefix="", dir=Path(os.environ[SPEC_VARIABLE]).parent)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything slow is started.

    Raises:
        EndpointError: the address is not this host's, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once only on sockets that name their protocol.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise EndpointError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another host or port"
        ) from error
    return sock


def set_environment(config: ServeConfig) -> None:
    """What vLLM reads from the environment when it is imported."""
    # A Kubernetes Service named `vllm` sets VLLM_PORT to a URL, which vLLM does not survive.
    for name in ("VLLM_TARGET_DEVICE", "VLLM_PORT"):
        os.environ.pop(name, None)
    os.environ |= {
        "VLLM_PLUGINS": "rufus_serve",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MAX_STOP_STRINGS": str(config.limits.max_stop_strings),
        "VLLM_LOGGING_LEVEL": {"INFO": "WARNING", "DEBUG": "INFO"}.get(
            config.log_level, config.log_level
        ),
        # Tokens are drawn of a few candidates; more threads would take cores from a follower here.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


if __name__ == "__main__":
    _code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter shutdown would only print what vLLM's libraries leak.
    os._exit(_code)
