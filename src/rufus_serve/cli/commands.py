"""The list of commands.

Each command is one module of this package with `add_arguments(parser)` and `run(args) -> int`;
it is imported only once it was asked for, and imports what is heavy inside `run`.
"""

import argparse
from importlib import import_module
from typing import NamedTuple, Protocol, cast


class CommandModule(Protocol):
    """What a command's module offers."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the exit code, or a RufusError."""


class Command(NamedTuple):
    """A command as `rufus-serve --help` lists it."""

    name: str
    summary: str

    def load(self) -> CommandModule:
        """Import the command's module: `restart-follower` is `restart_follower.py`."""
        module = import_module(f"rufus_serve.cli.{self.name.replace('-', '_')}")
        return cast("CommandModule", module)


COMMANDS = (
    Command("serve", "serve a model: start followers and the endpoint"),
    Command("follower", "offer this host to a leader on another one"),
    Command("config", "show, check or document the settings"),
    Command("plan", "tell whether a model fits Trainium nodes, and how fast it would be"),
    Command("compile", "make followers' shards and compiled graphs ahead of time"),
    Command("doctor", "examine this host, or all nodes, before anything is started"),
    Command("verify", "compare what is served with a reference in float32"),
    Command("status", "show the group of a running server"),
    Command("top", "watch a running server in the terminal"),
    Command("trace", "record where the time of the next steps goes"),
    Command("drain", "let a running server, or one of its groups, finish"),
    Command("restart-follower", "replace one follower of a running server"),
    Command("restart-group", "replace the followers of a group of a running server"),
    Command("scale", "add groups to a running server, or take some away"),
    Command("bench", "load an OpenAI endpoint and measure its streams"),
    Command("batch", "ask all requests of a file in OpenAI's batch format"),
    Command("key", "make, list and revoke API keys"),
    Command("demo-model", "make the small demo model"),
)
"""In the order of the help."""
