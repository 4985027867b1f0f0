"""`Call`: one `forward` of NxD Inference, in numpy, and the guards that both layouts share."""

from dataclasses import dataclass

import numpy as np

from rufus_serve.errors import RuntimeStepError
from rufus_serve.protocol.messages import Array, StepRequest


@dataclass(frozen=True)
class Call:
    """Keyword arguments of one `forward`, and where its logits go."""

    arguments: dict[str, Array]
    rows: tuple[int, ...]
    """Row of the step for each row of logits; empty if the logits are not wanted."""
    taken: tuple[int, ...] | None = None
    """Which tokens of the call bring `rows`, all its tokens counted row by row; None: one each."""

    @property
    def places(self) -> Array:
        """[rows] places of the wanted logits among all of the call's."""
        return np.array(range(len(self.rows)) if self.taken is None else self.taken, np.int64)

    def tell_totals_at(self, temperatures: Array) -> Array:
        """Have a graph that finds candidates tell totals at the step's `temperatures` [R].

        0 is any. Returns [rows] what it will be: the graph has one for all tokens of a row.
        """
        width = 1 if self.taken is None else self.arguments["input_ids"].shape[1]
        of_call, owners = self.arguments["sampling_params"], self.places // width
        wanted = temperatures[list(self.rows)]
        of_call[owners[wanted > 0], 2] = wanted[wanted > 0]
        told: Array = of_call[owners, 2]
        return told


def sampling_params(rows: int) -> Array:
    """[rows, 3] top_k, top_p, temperature: unused but where graphs find candidates, yet an input.

    NxD Inference's default has one row per KV line, which fits no graph of one row.
    """
    return np.ones((rows, 3), dtype=np.float32)


def column(values: Array) -> Array:
    """`values` [R] as int32 [R, 1]."""
    return np.asarray(values, dtype=np.int32).reshape(-1, 1)


def check_token_ids(step: StepRequest, vocab_size: int) -> None:
    """Raise RuntimeStepError for a token beyond the vocabulary; a graph would not notice."""
    lowest, highest = int(np.min(step.token_ids)), int(np.max(step.token_ids))
    if lowest < 0 or highest >= vocab_size:
        raise RuntimeStepError(
            f"step {step.step_id}: token ids {lowest} to {highest} are not all below the "
            f"vocabulary's size {vocab_size}"
        )


def check_prefill(step: StepRequest, max_model_len: int) -> tuple[int, int]:
    """Computed tokens and context length of a prefill step.

    Raises:
        RuntimeStepError: it has several rows, no new token, or too many tokens.
    """
    if step.num_rows != 1:
        raise RuntimeStepError(f"a prefill step has one row, step {step.step_id} {step.num_rows}")
    computed, length = int(step.num_computed_tokens[0]), int(step.context_lens[0])
    new = length - computed
    if not 0 <= computed < length or (step.token_ids.shape[0], step.num_new_tokens) != (
        length,
        new,
    ):
        raise RuntimeStepError(
            f"step {step.step_id}: {step.token_ids.shape[0]} token ids and "
            f"{step.num_new_tokens} slots do not make a prefill of {computed} computed and {new} "
            "new tokens"
        )
    if length > max_model_len:
        raise RuntimeStepError(
            f"step {step.step_id}: context of {length} tokens exceeds max_model_len {max_model_len}"
        )
    return computed, length


def check_decode(step: StepRequest, max_rows: int, max_model_len: int) -> Array:
    """[R] position of each row's token, which is also its index in the KV cache.

    `max_rows` counts tokens.

    Raises:
        RuntimeStepError: there are too many rows, or one is beyond the KV cache.
    """
    positions = np.asarray(step.num_computed_tokens, dtype=np.int32)
    if not 1 <= step.num_rows <= max_rows or step.token_ids.shape != positions.shape:
        raise RuntimeStepError(
            f"step {step.step_id}: {step.num_rows} rows and {step.token_ids.shape[0]} tokens in a "
            f"decode compiled for {max_rows} rows"
        )
    if positions.min() < 0 or positions.max() >= max_model_len:
        raise RuntimeStepError(
            f"step {step.step_id}: positions {positions.min()} to {positions.max()} are not all "
            f"within max_model_len {max_model_len}"
        )
    return positions
