"""`TruncatedSampler`: the last step of vLLM's sampler, without sorting whole vocabularies.

Without Triton, vLLM sorts every row of the vocabulary: 10 ms a row of 128,256 logits on one
thread. The largest few hold everything that top-k and top-p keep of nearly every row.
"""

from typing import Any

import numpy as np
import torch

from rufus_serve.leader.engine.draw import Filters, draw_from_whole


class TruncatedSampler(torch.nn.Module):
    """In place of vLLM's `TopKTopPSampler`, which it holds as `whole`; step thread only."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self._whole = whole
        self._wants_processed = str(whole.logprobs_mode).startswith("processed")
        self.uniforms = np.empty(0)
        """[R] of [0, 1), to be set before each call: the numbers that rows draw by."""

    def forward(
        self,
        logits: torch.Tensor,
        _: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids [R] drawn from `logits` [R, V], which may be overwritten.

        `k` [R] is V and `p` [R] is 1 for rows without. The second value is vLLM's processed
        logprobs, None unless it is set to return them.
        """
        processed = None
        if self._wants_processed:
            _, processed = self._whole(logits, {}, k, p)
            logits, k, p = processed, None, None
        num_rows, vocab_size = logits.shape
        top_k = np.zeros(num_rows, np.int64) if k is None else k.numpy() % vocab_size
        top_p = np.ones(num_rows) if p is None else p.numpy().astype(np.float64)
        filters = Filters(top_k, top_p, np.zeros(num_rows))
        tokens = draw_from_whole(logits.numpy(), filters, self.uniforms)
        return torch.from_numpy(tokens), processed
