"""Step sequences that every runtime must answer alike, planned the way the leader plans them.

Needs no runtime: `Sequences` is given a function that runs one step request, on one group of
followers or on several that are compared.
"""

from itertools import count

import numpy as np

from rufus_serve.leader.engine.step_builder import Row, StepBuilder

CONTIGUOUS = {
    "max_model_len": 128,
    "buckets": {"prefill": [16, 64, 128], "context": [32, 64, 128]},
    "neuron": {"kv_layout": "contiguous"},
}
BLOCK = {
    "max_model_len": 512,
    "block_size": 32,
    "buckets": {"prefill": [64, 128], "context": [128, 256, 512]},
    "neuron": {"kv_layout": "block"},
}
DRAFTED = CONTIGUOUS | {
    "max_model_len": 131,
    "buckets": {"prefill": [16, 64, 131], "context": [32, 64, 131]},
    "speculation": {"method": "ngram", "num_speculative_tokens": 3},
}
"""As `CONTIGUOUS`, its decodes of four tokens a row."""
LAYOUTS = {"contiguous": CONTIGUOUS, "block": BLOCK}
"""Settings by KV layout; with `max_num_seqs` 4."""


class Sequences:
    """Token sequences in KV blocks, run through a group the way a leader would."""

    def __init__(self, run, info):
        self._run, self._info = run, info
        self._builder = StepBuilder.for_runtime(info)
        self._step_id = count(1)
        self._free = list(range(1, info.num_blocks))
        self.tokens, self.blocks, self.computed = {}, {}, {}

    def add(self, name, tokens, *, shared=(), computed=0, blocks=None):
        """A sequence; its first blocks may be `shared`, its first tokens `computed` there."""
        self.tokens[name] = list(tokens)
        self.blocks[name] = list(shared) if blocks is None else list(blocks)
        self.computed[name] = computed

    def run(self, *names):
        """One scheduler step: logits by name, of each sequence's last token."""
        rows = [self._row(name) for name in names]
        planned = self._builder.build(rows, epoch=1, first_step_id=next(self._step_id))
        logits = {}
        for step in planned:
            result = self._run(step.request)
            for position, of in enumerate(step.rows):
                logits[names[of.row]] = result[position]
        for name in names:
            self.computed[name] = len(self.tokens[name])
        return logits

    def decode(self, *names):
        """As `run`; each sequence goes on with the best token."""
        for name, logits in self.run(*names).items():
            self.tokens[name].append(int(np.argmax(logits)))

    def try_drafts(self, drafts):
        """A decode of sequences with `drafts` behind them: logits [1 + drafts, V] by name.

        Each goes on with the best tokens, for as long as the drafts said the same.
        """
        names = list(drafts)
        rows = [self._row(name, drafts[name]) for name in names]
        (step,) = self._builder.build(rows, epoch=1, first_step_id=next(self._step_id))
        logits = {name: [] for name in names}
        for of, row in zip(step.rows, self._run(step.request), strict=True):
            logits[names[of.row]].append(row)
        for name in names:
            for row, draft in zip(logits[name], [*drafts[name], None], strict=True):
                self.tokens[name].append(int(np.argmax(row)))
                if self.tokens[name][-1] != draft:
                    break
            self.computed[name] = len(self.tokens[name]) - 1
        return logits

    def free(self, name):
        self._free = self.blocks.pop(name) + self._free
        del self.tokens[name], self.computed[name]

    def _row(self, name, drafts=()):
        tokens, done = [*self.tokens[name], *drafts], self.computed[name]
        blocks = self.blocks[name]
        while len(blocks) * self._info.block_size < len(tokens):
            blocks.append(self._free.pop(0))
        new = len(tokens) - done
        is_prefill = new - len(drafts) > 1
        return Row(np.array(tokens, np.int32), done, new, blocks, is_prefill=is_prefill)


def at_the_edges_of_buckets(sequences, prompt):
    for length in (1, 2, 15, 16, 17, 63, 64, 65, 127):
        sequences.add("a", prompt(length))
        sequences.decode("a")
        sequences.decode("a")
        sequences.free("a")


def full_and_partial_batches(sequences, prompt):
    for name, length in (("a", 1), ("b", 17), ("c", 64), ("d", 100)):
        sequences.add(name, prompt(length))
    for names in ("dba", "ab", "cabd", "c", "dcba", "bd", "acdb"):
        sequences.decode(*names)


def sequences_that_come_and_go(sequences, prompt):
    for name, length in (("a", 5), ("b", 17), ("c", 30)):
        sequences.add(name, prompt(length))
    sequences.decode(*"bca")
    sequences.decode(*"ca")
    sequences.add("d", prompt(41))
    sequences.decode(*"dbac")
    sequences.free("b")
    sequences.add("e", prompt(1))
    sequences.decode(*"ead")
    sequences.decode(*"ceda")


def up_to_the_last_position(sequences, prompt):
    sequences.add("a", prompt(125))
    sequences.add("b", prompt(3))
    for _ in range(3):
        sequences.decode(*"ab")


def a_sequence_preempted_and_resumed(sequences, prompt):
    sequences.add("a", prompt(20))
    sequences.add("b", prompt(9))
    for _ in range(4):
        sequences.decode(*"ab")
    tokens = sequences.tokens["a"]
    sequences.free("a")
    sequences.decode("b")
    sequences.add("a", tokens)
    for _ in range(2):
        sequences.decode(*"ba")


def a_prompt_in_segments(sequences, prompt):
    sequences.add("short", prompt(40))
    sequences.decode("short")
    sequences.add("long", prompt(400))
    for _ in range(2):
        sequences.decode("short", "long")


def cached_beginnings(sequences, prompt):
    """Beginnings that lie within the prefill bucket, fill the prefix bucket, or neither."""
    tokens = prompt(450)
    sequences.add("first", tokens[:400])
    sequences.decode("first")
    for cached, length in ((32, 50), (96, 97), (128, 256), (128, 200), (160, 260), (320, 430)):
        shared = sequences.blocks["first"][: cached // 32]
        sequences.add("hit", tokens[:length], shared=shared, computed=cached)
        sequences.decode("hit")
        sequences.decode("first", "hit")
        sequences.blocks["hit"] = sequences.blocks["hit"][cached // 32 :]
        sequences.free("hit")


def drafts_that_come_true_and_others(sequences, prompt):
    """Texts are those without drafts, whatever drafts said, in full and partial batches."""
    prompts = {name: prompt(length) for name, length in (("a", 30), ("b", 6), ("c", 100))}
    alone = {}
    for name, tokens in prompts.items():
        sequences.add(name, tokens)
        for _ in range(12):
            sequences.decode(name)
        alone[name] = sequences.tokens[name]
        sequences.free(name)
    for name, tokens in prompts.items():
        sequences.add(name, tokens)
        sequences.decode(name)

    def draft(name, count):
        done = len(sequences.tokens[name])
        return alone[name][done : done + count]

    sequences.try_drafts({"c": draft("c", 3), "a": draft("a", 1), "b": []})
    sequences.try_drafts({"b": [*draft("b", 1), 7, 9], "c": [5]})
    sequences.decode(*"ca")
    sequences.add("d", prompt(3))
    sequences.decode("d")
    sequences.try_drafts({"d": [9, 9, 9], "a": draft("a", 3), "b": draft("b", 2), "c": [3, 4]})
    sequences.try_drafts({"b": draft("b", 2)})
    for name, tokens in prompts.items():
        count = len(sequences.tokens[name])
        assert count > len(tokens) + 2
        assert sequences.tokens[name] == alone[name][:count]


_ANY = (
    at_the_edges_of_buckets,
    full_and_partial_batches,
    sequences_that_come_and_go,
    up_to_the_last_position,
    a_sequence_preempted_and_resumed,
)
SCHEDULES = {
    "contiguous": _ANY,
    "drafted": (*_ANY, drafts_that_come_true_and_others),
    "block": (*_ANY, a_prompt_in_segments, cached_beginnings),
}
"""By KV layout, and with `DRAFTED`; each takes `Sequences` and a maker of prompts of a length."""


def agreeing(*groups, atol):
    """Runs a step on all groups and compares; the first one's logits."""

    def run(step):
        first, *others = [group.step(step) for group in groups]
        for other in others:
            assert (first is None) == (other is None)
            if first is not None:
                np.testing.assert_allclose(other, first, atol=atol, rtol=0)
        return first

    return run
