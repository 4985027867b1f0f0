"""Milliseconds the leader takes to draw tokens with top-p of whole rows, beside vLLM's sampler.

Usage: python benchmarks/sampling.py [--vocab 49152 128256] [--rows 1 8 32] [--threads 1]
"""

import argparse
import time

import numpy as np
import torch
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from rufus_serve.leader.engine.truncation import TruncatedSampler

REPEATS = 10


def milliseconds(sampler, logits, p):
    """Of one call, the best of some."""
    best = float("inf")
    for _ in range(REPEATS):
        own = logits.clone()
        started = time.perf_counter()
        sampler(own, {}, None, p)
        best = min(best, time.perf_counter() - started)
    return 1e3 * best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    whole = TopKTopPSampler("raw_logprobs")
    print("| vocabulary | rows | vLLM's sampler | ours | ratio |\n| --- | --- | --- | --- | --- |")
    for vocab in arguments.vocab:
        for rows in arguments.rows:
            logits = 3 * torch.randn(rows, vocab)
            logits[:, 5] = 20.0
            p = torch.full((rows,), 0.9)
            truncated = TruncatedSampler(whole)
            truncated.uniforms = np.random.default_rng(0).random(rows)
            theirs = milliseconds(whole, logits, p)
            ours = milliseconds(truncated, logits, p)
            print(f"| {vocab} | {rows} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.3f} |")


if __name__ == "__main__":
    main()
