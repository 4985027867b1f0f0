"""The argument parser of every command: one clear line on a mistake, with the flag meant."""

import argparse
from typing import NoReturn

from rufus_serve.errors import ConfigError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wider help, with room for dotted flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=100)


class Parser(argparse.ArgumentParser):
    """Refuses abbreviations, and raises `ConfigError` instead of printing its usage."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into one line that names the nearest flag."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown == message:
            raise ConfigError(f"{message}; see '{self.prog} --help'")
        first = unknown.split()[0]
        if not first.startswith("-"):
            raise ConfigError(f"unexpected argument {first!r}; see '{self.prog} --help'")
        raise ConfigError(f"unknown flag {first.partition('=')[0]}{self._hint(first)}")

    def _hint(self, flag: str) -> str:
        # Imported late: --version must not wait for the configuration model.
        from rufus_serve.config.settings import nearest

        near = nearest(flag.partition("=")[0].lstrip("-"), [name[2:] for name in self.flags()])
        return f"; did you mean --{near}?" if near else f"; see '{self.prog} --help'"

    def flags(self) -> list[str]:
        """Every flag, those of sub-commands included."""
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                for child in action.choices.values():
                    flags += child.flags()
        return flags
