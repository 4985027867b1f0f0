"""Greedy tokens from an OpenAI endpoint, with the standard library alone."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec

from rufus_serve.client import bearer
from rufus_serve.errors import EndpointError
from rufus_serve.verify.reference import TOP, Choice

_TOKEN_ID = "token_id:"  # noqa: S105 - how vLLM writes ids where texts are expected


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom to ask."""

    url: str
    api_key: str = ""
    model: str = ""
    """Empty: the first that the endpoint serves."""
    timeout_s: float = 600.0

    def named(self) -> "Endpoint":
        """With the model's name. Raises EndpointError."""
        if self.model:
            return self
        try:
            name = self._call("/v1/models")["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError(f"{self.url}: names no model") from error
        return msgspec.structs.replace(self, model=str(name))

    def greedy(self, tokens: Sequence[int], count: int) -> list[Choice]:
        """`count` greedy tokens, end of text ignored. Raises EndpointError."""
        body = {
            "model": self.model, "prompt": list(tokens), "max_tokens": count, "temperature": 0,
            "ignore_eos": True, "logprobs": TOP, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        answer = self._call("/v1/completions", body)
        try:
            return choices_of(answer["choices"][0]["logprobs"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointError(
                f"{self.url}: an answer without token ids and log probabilities ({error!r}); "
                "verify needs vLLM's return_tokens_as_token_ids"
            ) from error

    def _call(self, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json", **bearer(self.api_key)}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")[:500]
            raise EndpointError(f"{self.url}{path}: HTTP {error.code}: {text}") from error
        except (OSError, ValueError) as error:
            raise EndpointError(f"{self.url}{path}: {error}") from error


def choices_of(logprobs: dict[str, Any]) -> list[Choice]:
    """The tokens of a completion's `logprobs`. Raises KeyError or ValueError if they are not so."""
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    return [
        Choice(
            token=_id(token),
            logprob=logprob,
            top={_id(each): value for each, value in top.items()} | {_id(token): logprob},
        )
        for token, logprob, top in zip(*columns, strict=True)
    ]


def _id(token: str) -> int:
    if not token.startswith(_TOKEN_ID):
        raise ValueError(f"{token!r} is no {_TOKEN_ID}N")
    return int(token.removeprefix(_TOKEN_ID))
