"""`PromptLogprobs`: how likely the tokens of prompts were, gathered from the steps that tell it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rufus_serve.leader.engine.group_steps import PlannedReply
from rufus_serve.leader.engine.step_builder import PromptWant
from rufus_serve.protocol.messages import PromptScores
from rufus_serve.runtime.prompt_scores import joined


@dataclass
class _Prompt:
    want: PromptWant
    parts: list[PromptScores] = field(default_factory=list)
    """Of successive positions."""


class PromptLogprobs:
    """Of the requests that want them and have no output yet; step thread only.

    They are told with a request's first token. So one that goes on after a loss has them if it
    has a token, and else computes its prompt again: such requests read no cached prefix.
    """

    def __init__(self, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._prompts: dict[str, _Prompt] = {}

    def begin(self, req_id: str, params: Any, *, num_prompt: int, num_output: int) -> None:
        """A request enters, or enters anew, with so many tokens; `params`: vLLM's."""
        self._prompts.pop(req_id, None)
        if params.prompt_logprobs is not None and not num_output:
            num_best = min(params.prompt_logprobs, self._vocab_size)
            self._prompts[req_id] = _Prompt(PromptWant(num_prompt, num_best))

    def forget(self, req_ids: Iterable[str]) -> None:
        """These requests are over."""
        for req_id in req_ids:
            self._prompts.pop(req_id, None)

    def want(self, req_id: str) -> PromptWant | None:
        """What is to be asked with the request's next step; None if nothing."""
        prompt = self._prompts.get(req_id)
        return None if prompt is None else prompt.want

    def collect(self, answers: Sequence[PlannedReply], req_ids: Sequence[str]) -> None:
        """Take what a step's replies tell; `req_ids` are the planned rows' owners."""
        for step, reply in answers:
            if reply.prompt_scores is not None:
                (member,) = step.members
                self._prompts[req_ids[member]].parts.append(reply.prompt_scores)

    def pop(self, req_ids: Iterable[str]) -> dict[str, PromptScores]:
        """All that was told of prompts which are through; of a lone token there is nothing."""
        done = {req_id: self._prompts.pop(req_id) for req_id in req_ids if req_id in self._prompts}
        return {req_id: joined(prompt.parts) for req_id, prompt in done.items() if prompt.parts}
