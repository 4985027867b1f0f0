"""Flags of commands that ask an endpoint: where it is, and as whom."""

import argparse
import os

_LOCAL = "http://127.0.0.1:8000"
_KEY = "OPENAI_API_KEY"


def add_url_argument(parser: argparse.ArgumentParser) -> None:
    """`--url`, by default where `serve` listens."""
    parser.add_argument("--url", default=_LOCAL, help=f"the endpoint [{_LOCAL}]")


def add_key_argument(parser: argparse.ArgumentParser, what: str = "") -> None:
    """`--api-key`, by default what OpenAI's own clients take; `what` is said of it."""
    words = f"{what} [{_KEY}]".strip()
    parser.add_argument("--api-key", default=os.environ.get(_KEY, ""), help=words)
