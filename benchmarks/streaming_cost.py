"""What an open stream costs the API process and the engine process.

    python benchmarks/streaming_cost.py [--clients 64] [--output-tokens 100] [--write]

Clients stream completions side by side from our server with the demo model. What is told is
process CPU for each token, which does not depend on how fast the model is, and the share of a core
that as many clients would take at 25 steps per second.
"""

import argparse
import asyncio
import time

import psutil

from marks import keep
from rufus_serve.bench.arrivals import Trace
from rufus_serve.bench.workload import Shape, made_up
from serving_servers import PORT, ROOT, Running, cpu_seconds, machine, ours, running, versions
from whole_answers import whole_answers

STEPS_PER_S = 25
RECORD = ROOT / "benchmarks" / "results" / "streaming_cost.json"
MARKS = ("<!-- streaming: begin -->", "<!-- streaming: end -->")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="keep the record and its table")
    return parser.parse_args()


def leaders(server: Running) -> dict[str, list[psutil.Process]]:
    """The leader's two processes; vLLM gives the engine its title."""
    found: dict[str, list[psutil.Process]] = {"API process": [], "engine process": []}
    for process in server.processes():
        words = process.cmdline()
        if words[0].startswith("VLLM::EngineCore"):
            found["engine process"].append(process)
        elif words[1:3] == ["-m", "rufus_serve.leader"]:
            found["API process"].append(process)
    return found


def measure(arguments, server: Running) -> list[dict]:
    """CPU of each process for a token, while all clients stream."""
    shape = Shape(
        num_requests=arguments.clients, input_tokens=16, output_tokens=arguments.output_tokens
    )
    url, processes = f"http://127.0.0.1:{PORT}", leaders(server)
    # Once to warm up: what is compiled or cached at first use is no stream's cost.
    for _ in range(2):
        before = {name: cpu_seconds(each)[0] for name, each in processes.items()}
        began = time.monotonic()
        asyncio.run(whole_answers(url, Trace((0.0,) * arguments.clients), made_up(shape)))
        spent_s = time.monotonic() - began
    num_tokens = arguments.clients * arguments.output_tokens
    rate = STEPS_PER_S * arguments.clients
    found = []
    for name, each in processes.items():
        token_s = (cpu_seconds(each)[0] - before[name]) / num_tokens
        found.append({
            "process": name, "clients": arguments.clients,
            "tokens_per_s": round(num_tokens / spent_s), "token_us": round(1e6 * token_s, 1),
            "core_percent": round(100 * token_s * rate, 1),
        })  # fmt: skip
    return found


def table(found: list[dict]) -> str:
    lines = [
        f"| process | clients | tokens/s | CPU us a token | % of a core at {STEPS_PER_S} steps/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(lines + ["| " + " | ".join(map(str, each.values())) + " |" for each in found])


def main() -> None:
    arguments = parse()
    contender = ours("--cluster.kind=local", f"--max-num-seqs={arguments.clients}")
    with running(contender) as server:
        found = measure(arguments, server)
    print(table(found))
    if arguments.write:
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        record = {"date": date, "machine": machine(), "versions": versions(),
                  "arguments": vars(arguments), "measured": found}  # fmt: skip
        keep(record, RECORD, f"{date}, {machine()['cpu']}\n\n{table(found)}", MARKS)


if __name__ == "__main__":
    main()
