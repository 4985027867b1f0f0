"""The `rufus-serve` command: picks the command, and turns errors into exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence

from rufus_serve.cli.commands import COMMANDS, Command
from rufus_serve.cli.parser import Parser
from rufus_serve.cli.surroundings import ensure_home
from rufus_serve.errors import ConfigError, RufusError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        ensure_home(os.environ)
        return _dispatch(arguments)
    except RufusError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; without this, Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return RufusError.exit_code
    except Exception as error:  # noqa: BLE001 - the process edge
        traceback.print_exc()
        print(f"error: unforeseen {type(error).__name__}: {error}; please report", file=sys.stderr)
        return RufusError.exit_code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_overview(), file=sys.stderr)
        return ConfigError.exit_code
    name = arguments[0]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        from rufus_serve import __version__

        print(f"rufus-serve {__version__}")
        return 0
    return _run(_find(name), arguments[1:])


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    from rufus_serve.config.settings import nearest

    near = nearest(name, [command.name for command in COMMANDS])
    hint = f"did you mean {near}?" if near else "see 'rufus-serve --help'"
    raise ConfigError(f"unknown command {name}; {hint}")


def _run(command: Command, arguments: list[str]) -> int:
    module = command.load()
    parser = Parser(prog=f"rufus-serve {command.name}", description=module.__doc__)
    module.add_arguments(parser)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    return module.run(parsed)


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: rufus-serve COMMAND [ARGUMENTS]",
            "",
            "One large language model over several Trainium nodes, behind one OpenAI endpoint.",
            "",
            "commands:",
            *lines,
            "",
            "'rufus-serve COMMAND --help' explains a command; --version shows the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
