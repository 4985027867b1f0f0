"""Step times of one model on 1, 2 and 4 followers with as many threads each, without a server.

    python benchmarks/tensor_parallel.py [--layouts 1x4 2x4 4x4] [--model 1b] [--rounds 5]

A layout is FOLLOWERSxTHREADS. Followers are processes with the collectives of the CPU runtime;
weights are random and in bfloat16. All layouts stay loaded and take turns, so that they share the
machine's moods. Needs torch, safetensors, pydantic, msgspec and PyYAML; neither vLLM nor Ray.
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from decode_step import BLOCK_SIZE, decode_request
from rufus_serve.config.schema import ServeConfig
from rufus_serve.protocol.messages import Phase, RowWants, StepRequest
from rufus_serve.runtime.base import GroupSpec

MAX_MODEL_LEN = 2048
STEPS_PER_TURN = {Phase.DECODE: 10, Phase.PREFILL: 2}
# hidden, inner, layers, query heads, KV heads, head size: the shapes of Llama 3.2.
SHAPES = {
    "tiny": (256, 512, 2, 8, 4, 32),
    "1b": (2048, 8192, 16, 32, 8, 64),
    "3b": (3072, 8192, 28, 24, 8, 128),
}
VOCAB_SIZE = 128256


@dataclass(frozen=True)
class Layout:
    """So many followers, with so many threads each."""

    followers: int
    threads: int

    @classmethod
    def parse(cls, text: str) -> "Layout":
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"{self.followers}x{self.threads}"


@dataclass(frozen=True)
class Case:
    """A step to measure: `size` rows that decode at `context`, or as many tokens of a prompt."""

    phase: Phase
    size: int
    context: int

    @property
    def name(self) -> str:
        what = "rows decode" if self.phase is Phase.DECODE else "tokens of a prompt"
        return f"{self.size} {what}, context {self.context}"

    def request(self) -> StepRequest:
        if self.phase is Phase.DECODE:
            return decode_request(self.size, self.context)
        blocks = 1 + np.arange(-(-self.context // BLOCK_SIZE), dtype=np.int32)
        places = np.arange(self.context - self.size, self.context)
        return StepRequest(
            step_id=1, epoch=1, phase=self.phase,
            token_ids=np.arange(self.context, dtype=np.int32) + 1000,
            num_computed_tokens=np.array([self.context - self.size], np.int32),
            context_lens=np.array([self.context], np.int32), block_table=blocks[None],
            slot_mapping=(blocks[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE).astype(
                np.int32
            ),
        )  # fmt: skip


CASES = (
    Case(Phase.DECODE, 1, 512), Case(Phase.DECODE, 8, 512), Case(Phase.DECODE, 8, 2000),
    Case(Phase.PREFILL, 512, 512),
)  # fmt: skip


@dataclass
class Times:
    """Milliseconds of a case's steps on rank 0, and how long it waited for peers in each."""

    step_ms: list[float] = field(default_factory=list)
    wait_ms: list[float] = field(default_factory=list)


def greedy_wants(num_rows: int) -> RowWants:
    """The best token of each row."""
    return RowWants(
        num_candidates=np.ones(num_rows, np.int32),
        temperatures=np.zeros((num_rows, 2), np.float32),
        num_token_ids=np.zeros(num_rows, np.int32),
        token_ids=np.zeros(0, np.int32),
    )


def write_model(folder: Path, shape: str) -> None:
    """A checkpoint of random weights: one block of noise, cut to measure."""
    hidden, inner, layers, q_heads, kv_heads, head = SHAPES[shape]
    noise = (torch.randn(1 << 22) * 0.02).to(torch.bfloat16)

    def weight(*size: int) -> torch.Tensor:
        count = int(np.prod(size))
        return noise.repeat(-(-count // noise.numel()))[:count].view(size).clone()

    tensors = {"model.embed_tokens.weight": weight(VOCAB_SIZE, hidden)}
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        sizes = {
            "self_attn.q_proj": (q_heads * head, hidden),
            "self_attn.k_proj": (kv_heads * head, hidden),
            "self_attn.v_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, q_heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        tensors |= {f"{stem}.{name}.weight": weight(*size) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": q_heads, "num_key_value_heads": kv_heads, "head_dim": head,
        "vocab_size": VOCAB_SIZE, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def follow(model: str, layout: Layout, rank: int, conductor: Connection) -> None:
    """A follower: runs the cases that come, answers with its times; None ends it."""
    from rufus_serve.runtime.cpu import CpuRuntime

    config = ServeConfig(
        model=model, nodes=layout.followers, dtype="bfloat16", block_size=BLOCK_SIZE,
        max_num_seqs=8, max_model_len=MAX_MODEL_LEN, cpu={"threads": layout.threads},
    )  # fmt: skip
    runtime = CpuRuntime(config, rank, num_followers_on_host=layout.followers)
    info = runtime.load(lambda *_: None)
    group = GroupSpec(
        epoch=1, node_rank=rank, num_nodes=layout.followers, same_host=True,
        rendezvous=f"rufus-tp-{os.getppid()}-{layout}", num_blocks=info.num_blocks,
    )  # fmt: skip
    runtime.join(group)
    runtime.warm_up(lambda *_: None)
    conductor.send(info.kernels)
    while case := conductor.recv():
        times, step = Times(), case.request()
        wants = greedy_wants(step.num_rows)
        run = runtime.decode if case.phase is Phase.DECODE else runtime.prefill
        for _ in range(STEPS_PER_TURN[case.phase]):
            began = time.perf_counter()
            run(step).candidates(wants)
            times.step_ms.append(1e3 * (time.perf_counter() - began))
            times.wait_ms.append(1e3 * runtime.last_wait_s)
        conductor.send(times)
    runtime.close()


class Group:
    """The processes of one layout."""

    def __init__(self, layout: Layout, model: str) -> None:
        self.times = {case: Times() for case in CASES}
        self._pipes: list[Connection] = []
        self._processes = []
        spawn = multiprocessing.get_context("spawn")
        for rank in range(layout.followers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=follow, args=(model, layout, rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self.kernels = {pipe.recv() for pipe in self._pipes}

    def take_turn(self, case: Case) -> None:
        for pipe in self._pipes:
            pipe.send(case)
        first, *_ = [pipe.recv() for pipe in self._pipes]
        self.times[case].step_ms += first.step_ms
        self.times[case].wait_ms += first.wait_ms

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)


def table(groups: dict[Layout, Group]) -> str:
    lines = [
        "| step | followers x threads | median ms | best ms | waited for peers | times the first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        first, *_ = (float(np.median(group.times[case].step_ms)) for group in groups.values())
        for layout, group in groups.items():
            of = group.times[case]
            median = float(np.median(of.step_ms))
            lines.append(
                f"| {case.name} | {layout} | {median:.1f} | {min(of.step_ms):.1f} "
                f"| {float(np.median(of.wait_ms)):.1f} | {first / median:.2f} |"
            )
    return "\n".join(lines)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((each.split(":")[1].strip() for each in lines if "model name" in each), "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", type=Layout.parse, nargs="+",
                        default=[Layout(followers, 4) for followers in (1, 2, 4)])  # fmt: skip
    parser.add_argument("--model", choices=SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="rufus-tp-") as folder:
        write_model(Path(folder), options.model)
        groups = {layout: Group(layout, folder) for layout in options.layouts}
    for _ in range(options.rounds):
        for case in CASES:
            for group in groups.values():
                group.take_turn(case)
    for group in groups.values():
        group.end()
    kernels = ", ".join(sorted(set.union(*(group.kernels for group in groups.values()))))
    print(f"{options.model}, {processor()}, {os.cpu_count()} cores, {kernels} kernels, "
          f"torch {torch.__version__}, python {platform.python_version()}\n")  # fmt: skip
    print(table(groups))


if __name__ == "__main__":
    main()
