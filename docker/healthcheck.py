"""Docker's HEALTHCHECK: `healthcheck.py http` asks the endpoint, `raylet` looks for the process."""

import os
import sys
import urllib.request

import psutil


def main(kind: str) -> int:
    """0 if healthy."""
    if kind == "raylet":
        return (
            0 if any(each.info["name"] == "raylet" for each in psutil.process_iter(["name"])) else 1
        )
    port = os.environ.get("RUFUS_PORT", "8000")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
