"""Requests that schemathesis makes of a server's OpenAPI document, and mixtures of them.

    PYTHON hostile_requests.py URL MODEL --seed N

Runs in an environment with schemathesis; `python -m benchmarks.hostile schema` starts it. Most of
what is generated is refused for the first of many things wrong with it. So each case is followed
by requests that would be served but for a few fields of such cases: they get further, and cost a
tenth to make. Prints one JSON object: how much was sent, and what was answered with a 5xx.
"""

import argparse
import contextlib
import json
import random
import re
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import hypothesis
import requests
import schemathesis
from requests.adapters import HTTPAdapter
from schemathesis.generation import GenerationMode

EXAMPLES = 40
"""Of each operation with a body: a run that is cut off loses two thousand requests at most."""
MIXTURES = 40
"""Sent after each of them."""
KEPT = 1000
"""Cases whose fields are mixed."""
AT_ONCE = 16
"""Requests in flight: some of them wait for tokens."""
TIMEOUT_S = 120
ERROR_EVENT = re.compile(rb'"error":.*"code": ?5\d\d')
"""Within a stream, whose status is out."""
TURN = {"role": "user", "content": "a"}
SERVED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [TURN]},
    "/v1/chat/completions/batch": {"messages": [[TURN]]},
    "/v1/completions": {"prompt": "a"},
    "/v1/messages": {"messages": [TURN], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [TURN]},
    "/v1/responses": {"input": "a"},
    "/generative_scoring": {"query": "a", "items": ["b"], "label_token_ids": [5, 6]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5, 6]},
}
"""A body of each route that is answered with 200."""
SAME_BODIES = {"/v1/chat/completions": ["/v1/chat/completions", "/invocations"]}
"""Routes that take the same bodies: of /invocations the document says nothing."""


class Attacker:
    """Sends, and counts what comes back."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.server_errors: list[dict[str, Any]] = []
        self._url, self._model = url, model
        self._rng = random.Random(seed)
        self._seed = seed
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(pool_maxsize=AT_ONCE))
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._asked: deque[tuple[str, Future[requests.Response]]] = deque()

    def attack(self, operation: Any) -> None:
        """Send what is generated for one operation, right and wrong in turn, and mixtures."""
        served = SERVED.get(operation.path)
        fields: list[tuple[str, Any]] = []

        @hypothesis.seed(self._seed)
        @hypothesis.settings(
            max_examples=EXAMPLES,
            phases=[hypothesis.Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=_cases(operation))
        def send(case: Any) -> None:
            self._ask("generated", case.as_transport_kwargs(base_url=self._url))
            if served is None or not isinstance(case.body, dict):
                return
            fields.extend(case.body.items())
            del fields[:-KEPT]
            paths = SAME_BODIES.get(operation.path, [operation.path])
            for path in self._rng.choices(paths, k=MIXTURES):
                self._ask("mixed", self._mixture(path, served, fields))

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong with it
            send()

    def _mixture(
        self, path: str, served: dict[str, Any], fields: list[tuple[str, Any]]
    ) -> dict[str, Any]:
        """A request that would be served but for one to three of the fields."""
        chosen = self._rng.sample(fields, min(len(fields), self._rng.randint(1, 3)))
        body = {"model": self._model} | served | dict(chosen)
        # Not `json=`: that refuses what is no number in JSON, and the server has to.
        return {
            "method": "POST",
            "url": self._url + path,
            "data": json.dumps(body),
            "headers": {"content-type": "application/json"},
        }

    def _ask(self, kind: str, request: dict[str, Any]) -> None:
        """Send it on another thread: meanwhile the next one is made."""
        if len(self._asked) >= AT_ONCE:
            self._take()
        sending = self._threads.submit(self._session.request, **request, timeout=TIMEOUT_S)
        self._asked.append((kind, sending))

    def finish(self) -> None:
        """Wait for all answers."""
        while self._asked:
            self._take()

    def _take(self) -> None:
        kind, sending = self._asked.popleft()
        answer = sending.result()
        self.counts[kind] += 1
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500 or ERROR_EVENT.search(answer.content):
            request = answer.request
            self.server_errors.append(
                {
                    "status": answer.status_code,
                    "asked": f"{request.method} {request.path_url} {request.body!r}",
                    "answer": answer.text[:500],
                }
            )


def _cases(operation: Any) -> Any:
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    return hypothesis.strategies.one_of(
        *(operation.as_strategy(generation_mode=mode) for mode in modes)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    attacker = Attacker(args.url, args.model, args.seed)
    for found in schemathesis.openapi.from_url(f"{args.url}/openapi.json").get_all_operations():
        attacker.attack(found.ok())
    attacker.finish()
    found = {
        "counts": attacker.counts,
        "statuses": attacker.statuses,
        "server_errors": attacker.server_errors,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
