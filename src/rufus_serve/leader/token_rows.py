"""Tokens that the tokenizer knows and the model has no row for, such as added ones."""

from collections.abc import Iterable

_SHOWN = 5


def refusal(what: str, token_ids: Iterable[int], vocab_size: int) -> str:
    """Why a request with `token_ids` in its `what` cannot be served; empty if it can."""
    unknown = sorted({token for token in token_ids if not 0 <= token < vocab_size})
    if not unknown:
        return ""
    shown = ", ".join(map(str, unknown[:_SHOWN])) + (", …" if len(unknown) > _SHOWN else "")
    return (
        f"{what} holds token {shown}, which this model has no weights for: its vocabulary has "
        f"{vocab_size} tokens; leave out what the tokenizer makes of it"
    )
