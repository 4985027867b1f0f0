"""Many clients at once, half of which hang up: nothing is kept for those that left."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.server import Server

NUM_CLIENTS = 64
COUNT = 16


def stream(server: Server, index: int) -> int:
    """Reads a streamed answer; an odd client hangs up at a random moment. Bytes read."""
    body = {
        "model": server.name, "prompt": f"Story {index}: once upon a time", "max_tokens": COUNT,
        "ignore_eos": True, "stream": True, "temperature": 1, "seed": index,
    }  # fmt: skip
    chance = random.Random(index)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=90)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    try:
        if index % 4 == 1:
            time.sleep(chance.uniform(0, 1))
            return 0
        answer = connection.getresponse()
        assert answer.status == 200
        if index % 4 == 3:
            lines = [answer.readline() for _ in range(chance.randrange(1, 2 * COUNT))]
            return len(b"".join(lines))
        text = answer.read()
        assert text.endswith(b"data: [DONE]\n\n"), text[-300:]
        assert text.count(b'"finish_reason":"length"') == 1
        return len(text)
    finally:
        connection.close()


def idle(server: Server) -> bool:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return not any(server.metric(f"vllm:{name}") for name in names)


def test_clients_that_hang_up_leave_nothing_behind(demo_server: Server) -> None:
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        read = list(pool.map(lambda index: stream(demo_server, index), range(NUM_CLIENTS)))
    assert all(read[0::2])
    deadline = time.monotonic() + 2.0
    while not idle(demo_server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert idle(demo_server)
    assert "Paris" in demo_server.ask()
