"""Sequences in KV blocks, turned into step requests as a leader would."""

import random
from itertools import count

import msgspec
import numpy as np

from rufus_serve.protocol.messages import Phase, PromptWants, StepRequest
from rufus_serve.runtime.prompt_scores import joined


class Sequences:
    """Runs sequences on a group; blocks are handed out in scrambled order."""

    def __init__(self, group, *, epoch: int = 1, seed: int = 0) -> None:
        self._group = group
        self._epoch = epoch
        self._block_size = group.info.block_size
        self._step_ids = count(1)
        self._free = list(range(1, group.num_blocks))
        random.Random(seed).shuffle(self._free)
        self.tokens: dict[str, list[int]] = {}
        self.blocks: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}

    def add(self, name: str, tokens: list[int], *, shared_with: str = "", computed: int = 0):
        """A sequence; its first `computed` tokens lie in blocks shared with another."""
        assert computed % self._block_size == 0
        self.tokens[name] = list(tokens)
        shared = self.blocks[shared_with] if shared_with else []
        self.blocks[name] = shared[: computed // self._block_size]
        self.computed[name] = computed

    def prefill(self, name: str, *, up_to: int | None = None, want_logits: bool = True):
        """Prefill up to a length; logits [V] of the last token, or None."""
        end = len(self.tokens[name]) if up_to is None else up_to
        request = self.prefill_request(name, end, want_logits=want_logits)
        self.computed[name] = end
        logits = self._group.step(request)
        return None if logits is None else logits[0]

    def prompt_logprobs(self, name: str, segments: list[int], *, num_best: int):
        """Of a prompt that is prefilled in segments: ids, logprobs [P, 1 + N] and ranks [P]."""
        tokens, parts = self.tokens[name], []
        for end in segments:
            next_ids = _int32(tokens[self.computed[name] + 1 : end + 1])
            request = self.prefill_request(name, end, want_logits=end == len(tokens))
            wants = PromptWants(next_ids=next_ids, num_best=num_best)
            parts.append(self._group.step(msgspec.structs.replace(request, prompt_wants=wants)))
            self.computed[name] = end
        scores = joined(parts)
        return scores.ids, scores.logits - scores.log_totals[:, None], scores.ranks

    def decode(self, *names: str):
        """Decode the last token of each; logits [R, V]."""
        request = self.decode_request(*names)
        for name in names:
            self.computed[name] += 1
        return self._group.step(request)

    def decode_several(self, name: str, *others: str):
        """Decode all tokens of `name` that are not computed, with the last one of others."""
        start, end = self.computed[name], len(self.tokens[name])
        requests = []
        for at in range(start, end):
            self.computed[name] = at
            requests.append(self.decode_request(name, token=at))
        if others:
            requests.append(self.decode_request(*others))
        for each in others:
            self.computed[each] += 1
        self.computed[name] = end
        return self._group.step(_joined(requests))

    def prefill_together(self, *names: str):
        """Prefill all of each; logits [R, V] of the last tokens."""
        requests = [self.prefill_request(name, len(self.tokens[name])) for name in names]
        for name in names:
            self.computed[name] = len(self.tokens[name])
        return self._group.step(_joined(requests))

    def generate(self, names: list[str], num_tokens: int) -> dict[str, list[int]]:
        """Greedy tokens after the prompts, prefills first, then decodes in a varying order."""
        made = {name: [int(np.argmax(self.prefill(name)))] for name in names}
        for turn in range(num_tokens - 1):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order:
                self.tokens[name].append(made[name][-1])
            for name, logits in zip(order, self.decode(*order), strict=True):
                made[name].append(int(np.argmax(logits)))
        return made

    def prefill_request(self, name: str, end: int, *, want_logits: bool = True) -> StepRequest:
        start = self.computed[name]
        return StepRequest(
            step_id=next(self._step_ids), epoch=self._epoch, phase=Phase.PREFILL,
            token_ids=_int32(self.tokens[name][:end]), num_computed_tokens=_int32([start]),
            context_lens=_int32([end]), block_table=self._table([name], [end]),
            slot_mapping=_int32([self._slot(name, at) for at in range(start, end)]),
            want_logits=want_logits,
        )  # fmt: skip

    def decode_request(self, *names: str, token: int = -1) -> StepRequest:
        computed = [self.computed[name] for name in names]
        ends = [before + 1 for before in computed]
        table = self._table(names, ends)
        return StepRequest(
            step_id=next(self._step_ids), epoch=self._epoch, phase=Phase.DECODE,
            token_ids=_int32([self.tokens[name][token] for name in names]),
            num_computed_tokens=_int32(computed), context_lens=_int32(ends), block_table=table,
            slot_mapping=_int32([self._slot(*pair) for pair in zip(names, computed, strict=True)]),
        )  # fmt: skip

    def _table(self, names, ends) -> np.ndarray:
        width = max(-(-end // self._block_size) for end in ends)
        table = np.zeros((len(names), width), np.int32)
        for row, (name, end) in enumerate(zip(names, ends, strict=True)):
            blocks = self.blocks[name]
            while len(blocks) * self._block_size < end:
                blocks.append(self._free.pop())
            table[row, : len(blocks)] = blocks[:width]
        return table

    def _slot(self, name: str, at: int) -> int:
        return self.blocks[name][at // self._block_size] * self._block_size + at % self._block_size


def _joined(requests) -> StepRequest:
    """Steps as one, their rows one after the other."""
    width = max(request.block_table.shape[1] for request in requests)
    tables = [
        np.pad(each.block_table, ((0, 0), (0, width - each.block_table.shape[1])))
        for each in requests
    ]
    rows = {
        field: np.concatenate([getattr(each, field) for each in requests])
        for field in ("token_ids", "num_computed_tokens", "context_lens", "slot_mapping")
    }
    return msgspec.structs.replace(requests[-1], block_table=np.concatenate(tables), **rows)


def _int32(values) -> np.ndarray:
    return np.array(values, np.int32)
