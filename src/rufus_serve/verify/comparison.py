"""Compares an endpoint's greedy tokens with a reference's; pure but for what it asks.

The endpoint is led through the reference's tokens: where it picks another one, that is noted, and
it goes on behind the reference's, so that one token does not make all later ones different.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

import msgspec

from rufus_serve.errors import EndpointError
from rufus_serve.verify.reference import Choice, Prompt, Reference, chosen_tokens

Ask = Callable[[Sequence[int], int], Sequence[Choice]]
"""Up to so many greedy tokens after a prompt's."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What rounding explains, in nats."""

    margin: float = 0.5
    """By how much less likely a token may be, to the reference, than the one it picks."""
    mean_error: float = 0.1
    """Of the log probabilities of the reference's tokens."""


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """Another token than the reference's."""

    prompt: int
    """Index of the prompt."""
    position: int
    """Index of the token."""
    expected: int
    found: int
    margin: float
    """By how much less likely the reference holds `found`, in nats."""
    is_at_least: bool
    """The reference does not list `found`: the margin may be larger."""


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that was compared."""

    made_by: str
    same_checkpoint: bool | None
    """Whether the reference was made of the checkpoint that is served; None if it is not known."""
    limits: Limits
    num_tokens: int
    divergences: tuple[Divergence, ...]
    """The first one of the first prompt comes first."""
    mean_error: float
    """Of the log probabilities of the reference's tokens, in nats."""
    max_error: float

    @property
    def agreement(self) -> float:
        """Share of tokens that are the reference's."""
        return 1 - len(self.divergences) / self.num_tokens

    @property
    def worst(self) -> Divergence | None:
        """The divergence that rounding explains least."""
        return max(self.divergences, key=lambda each: each.margin, default=None)

    @property
    def faults(self) -> list[str]:
        """What rounding does not explain; empty if it is the model."""
        found, worst = [], self.worst
        if worst is not None and worst.margin > self.limits.margin:
            found.append(
                f"prompt {worst.prompt}, token {worst.position}: {worst.found} instead of "
                f"{worst.expected}, which the reference holds {worst.margin:.3f} nats likelier; "
                f"the limit is {self.limits.margin:g}"
            )
        if not self.mean_error <= self.limits.mean_error:
            found.append(
                f"log probabilities are off by {self.mean_error:.3f} nats in the mean; the limit "
                f"is {self.limits.mean_error:g}"
            )
        return found


def compare(
    reference: Reference, ask: Ask, *, limits: Limits, same_checkpoint: bool | None
) -> VerifyReport:
    """Lead the endpoint behind `ask` through all prompts.

    Raises:
        EndpointError: it ended an answer early.
    """
    divergences: list[Divergence] = []
    errors: list[float] = []
    for index, prompt in enumerate(reference.prompts):
        for position, found in enumerate(_led(prompt, ask)):
            expected = prompt.choices[position]
            if found.token != expected.token:
                divergences.append(_divergence(index, position, expected, found.token))
            # What a list leaves out is at most as likely as its last one.
            own = found.top.get(expected.token, found.least)
            errors.append(abs(own - expected.logprob))
    return VerifyReport(
        made_by=reference.made_by,
        same_checkpoint=same_checkpoint,
        limits=limits,
        num_tokens=len(errors),
        divergences=tuple(divergences),
        mean_error=fmean(errors),
        max_error=max(errors),
    )


def _led(prompt: Prompt, ask: Ask) -> list[Choice]:
    """What the endpoint picks behind each beginning of the reference's tokens."""
    expected, found = chosen_tokens(prompt.choices), list[Choice]()
    while len(found) < len(expected):
        answer = ask([*prompt.tokens, *expected[: len(found)]], len(expected) - len(found))
        if not answer:
            raise EndpointError(
                f"the endpoint ended after {len(found)} of {len(expected)} tokens of prompt "
                f"{prompt.text[:40]!r}; it must honour ignore_eos"
            )
        for choice in answer:
            found.append(choice)
            if choice.token != expected[len(found) - 1]:
                break
    return found


def _divergence(prompt: int, position: int, expected: Choice, found: int) -> Divergence:
    listed = expected.top.get(found)
    return Divergence(
        prompt=prompt,
        position=position,
        expected=expected.token,
        found=found,
        margin=expected.logprob - (expected.least if listed is None else listed),
        is_at_least=listed is None,
    )
