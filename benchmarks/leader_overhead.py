"""What the leader adds to a step, beside vLLM's own sampler on the same logits.

    python benchmarks/leader_overhead.py [--rows 1 8 32 64] [--followers 1] [--delay-ms 10]

A null follower answers `--delay-ms` after each step, from logits made beforehand; so a step's
period less the delay is the leader's own. The engine side is the product's: scheduler output,
batch state, step builder, channel, candidates, draws. `full` asks for whole rows and samples
them with vLLM's sampler, as without candidates.
"""
