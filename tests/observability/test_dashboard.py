"""The dashboard's queries and the alerts' rules, by a real Prometheus on a real server."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.models import prompt, tiny_checkpoint
from tests.e2e.server import Server, free_port

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "helm" / "rufus-serve" / "files"
PANELS = json.loads((FILES / "dashboard.json").read_text())["panels"]
SCRAPE_S = 1
VARIABLES = {"$namespace": "test", "$pod": "leader-0", "$__rate_interval": "30s"}


class Prometheus:
    """One that scrapes `server`, and knows the chart's rules."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.port = free_port()
        self.first_scrape = ""
        target = {"targets": [f"127.0.0.1:{server.port}"]}
        target["labels"] = {"namespace": "test", "pod": "leader-0", "container": "leader"}
        config = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str(FILES / "alerts.yaml")],
            "scrape_configs": [{"job_name": "leader", "static_configs": [target]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        found = ROOT / ".tools" / "prometheus" / "usr" / "bin" / "prometheus"
        program = shutil.which("prometheus") or (str(found) if found.exists() else None)
        assert program, "no prometheus: run deploy/helm/get-tools.sh"
        command = [program, f"--config.file={folder / 'prometheus.yaml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log)

    def ask(self, path: str, **query: str) -> Any:
        words = urllib.parse.urlencode(query)
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{words}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def values(self, expression: str) -> list[float]:
        found = self.ask("query", query=expression)["result"]
        return [float(each["value"][1]) for each in found]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """After half a minute of work, with refusals and a restarted follower in it."""
    folder = tmp_path_factory.mktemp("prometheus")
    model = tiny_checkpoint(folder / "llama", "llama")
    server = Server(model, "--nodes=2", "--cluster.kind=local", "--max-model-len=512")
    found = Prometheus(server, folder)
    try:
        found.first_scrape = first_metrics(server)
        server.wait_ready()
        work(server)
        yield found
    finally:
        found.stop()
        server.stop()
        server.remove()


def first_metrics(server: Server) -> str:
    """The first answer of `/metrics`."""
    deadline = time.monotonic() + 60
    while (answer := server.get("/metrics"))[0] != 200 or "rufus_group_epoch{" not in answer[1]:
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer[1]


def work(server: Server) -> None:
    ends = time.monotonic() + 35
    shared = prompt(64)
    with ThreadPoolExecutor(3) as pool:
        while time.monotonic() < ends:
            list(pool.map(lambda _: server.greedy(shared, 30), range(3)))
            # Too likely a token to decide by candidates.
            server.post(
                "/v1/completions",
                {"model": server.name, "prompt": shared, "max_tokens": 2, "top_p": 0.999,
                 "temperature": 2.0, "logit_bias": {}},
            )  # fmt: skip
            server.post("/v1/completions", {"model": server.name})


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.timeout(180)
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_of_a_panel_has_data(prometheus: Prometheus, panel: Any) -> None:
    for target in panel["targets"]:
        values = prometheus.values(filled_in(target["expr"]))
        assert values, target["expr"]
        assert all(value == value for value in values), (target["expr"], values)


def test_the_rules_are_evaluated_without_error(prometheus: Prometheus) -> None:
    (group,) = prometheus.ask("rules")["groups"]
    assert [rule["name"] for rule in group["rules"] if rule["health"] != "ok"] == []
    assert prometheus.values("rufus:ttft_seconds:p99")


def test_a_server_that_works_raises_no_alert(prometheus: Prometheus) -> None:
    assert [each["labels"]["alertname"] for each in prometheus.ask("alerts")["alerts"]] == []


def test_the_scrape_tells_what_was_done(prometheus: Prometheus) -> None:
    (padded,) = prometheus.values('sum(rufus_bucket_computed_total{phase="decode"})')
    (used,) = prometheus.values('sum(rufus_bucket_used_total{phase="decode"})')
    assert padded >= used > 100
    refused = 'sum(rufus_http_requests_total{route="/v1/completions", status="400"})'
    assert prometheus.values(refused)[0] > 0


def test_the_group_is_seen_before_vllm_is_loaded(prometheus: Prometheus) -> None:
    assert "rufus_group_state{" in prometheus.first_scrape
    assert "vllm:" not in prometheus.first_scrape
