"""`Suspects`: finds the request that a runtime refuses again and again."""

from collections.abc import Collection

_CLEARED_AFTER = 2
"""Tokens after which a suspect is none any more: one of its prompt's step, one of a decode."""


class Suspects:
    """Requests that were in a refused step; EngineCore's main thread, `alone` any.

    A refused step ends its epoch, and its requests are recomputed with each suspect in steps of
    its own. So the second refusal names the one that it is about.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self.alone: frozenset[str] = frozenset()
        """Requests that share a decode step with no other; replaced, never changed."""

    def refused(self, req_ids: Collection[str]) -> list[str]:
        """Note a refused step of these requests; those among them that are to be failed."""
        guilty = [req_id for req_id in req_ids if req_id in self._tokens]
        self._tokens |= dict.fromkeys(req_ids, 0)
        self.forget(guilty)
        return guilty

    def delivered(self, req_id: str) -> None:
        """A step brought this request a token."""
        if req_id in self._tokens:
            self._tokens[req_id] += 1
            if self._tokens[req_id] >= _CLEARED_AFTER:
                self.forget((req_id,))

    def forget(self, req_ids: Collection[str]) -> None:
        """These requests ended."""
        for req_id in req_ids:
            self._tokens.pop(req_id, None)
        self.alone = frozenset(self._tokens)
