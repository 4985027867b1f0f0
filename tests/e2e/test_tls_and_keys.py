"""A server with TLS and keys in odd surroundings: a folder and variables that would mislead it."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server, shadowing
from tests.e2e.test_front_door import run_key

CLIENTS = ("patient", "urgent")


def authority(folder: Path, name: str) -> tuple[Path, Path]:
    """Certificate and key of a new authority."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN={name}", "-days", "2", "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    return certificate, key


def signed(folder: Path, name: str, by: tuple[Path, Path], number: int = 1) -> tuple[Path, Path]:
    """Certificate, for localhost, and key that the authority `by` signed."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    request, extensions = folder / f"{name}.csr", folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request),
    )  # fmt: skip
    openssl(
        "x509", "-req", "-in", str(request), "-CA", str(by[0]), "-CAkey", str(by[1]),
        "-set_serial", str(number), "-days", "1", "-extfile", str(extensions),
        "-out", str(certificate),
    )  # fmt: skip
    return certificate, key


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


class GuardedServer(Server):
    """Speaks HTTPS, to clients with a certificate and a key."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder_of_keys = folder
        self.own, self.clients = authority(folder, "servers"), authority(folder, "clients")
        self.pair = signed(folder, "server", self.own)
        self.client_pair = signed(folder, "client", self.clients)
        keys = folder / "keys"
        self.keys = {
            name: run_key("add", name, f"--file={keys}", f"--priority={priority}")
            for name, priority in zip(CLIENTS, (5, -5), strict=True)
        }
        self.context = ssl.create_default_context(cafile=str(self.own[0]))
        self.context.load_cert_chain(*self.client_pair)
        super().__init__(
            model, "--cluster.kind=local", "--max-num-seqs=1", "--max-model-len=512",
            f"--api-key-file={keys}", f"--http.tls-certificate={self.pair[0]}",
            f"--http.tls-key={self.pair[1]}", f"--http.tls-client-ca={self.clients[0]}",
            # As of Kubernetes Services named so.
            environ={"VLLM_PORT": "tcp://10.0.0.1:8000", "RUFUS_PORT": "tcp://10.0.0.1:8000"},
            cwd=shadowing(folder / "cwd"),
        )  # fmt: skip

    def get(self, path: str) -> tuple[int, str]:
        try:
            return self.call("GET", path)
        except OSError:
            return 0, ""

    def call(self, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, str]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.context, timeout=120
        )
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        try:
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def complete(self, name: str, **fields: Any) -> tuple[int, str]:
        body = {"model": self.name, "prompt": "word", "max_tokens": 8} | fields
        return self.call("POST", "/v1/completions", body, key=self.keys[name])

    def serial(self) -> int:
        """Serial number of the certificate that a new connection is shown."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
        ):
            return int(str((sock.getpeercert() or {})["serialNumber"]), 16)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    folder = tmp_path_factory.mktemp("guarded")
    model = Path(shutil.copytree(tiny_model, folder / "model"))
    unusable = {"temperature": 9.0, "top_p": 1.5, "repetition_penalty": 0.0}
    (model / "generation_config.json").write_text(json.dumps(unusable))
    server = GuardedServer(model, folder)
    try:
        server.wait_ready()
        yield server
        assert server.stop() == 0
    finally:
        server.remove()


def test_it_comes_up_and_answers_whatever_folder_variables_and_defaults_say(
    server: GuardedServer,
) -> None:
    status, text = server.complete("urgent")
    assert status == 200, text
    assert server.call("GET", "/v1/models")[0] == 401


def test_a_client_without_a_certificate_of_the_authority_gets_no_answer(
    server: GuardedServer,
) -> None:
    stranger = ssl.create_default_context(cafile=str(server.own[0]))
    with pytest.raises(OSError, match=r"(?i)certificate required|reset|closed"):
        ask_health(http.client.HTTPSConnection("127.0.0.1", server.port, context=stranger))
    with pytest.raises((OSError, http.client.HTTPException)):
        ask_health(http.client.HTTPConnection("127.0.0.1", server.port))


def ask_health(connection: http.client.HTTPConnection) -> None:
    connection.timeout = 10
    try:
        connection.request("GET", "/health")
        connection.getresponse()
    finally:
        connection.close()


def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not(server: GuardedServer) -> None:
    assert server.serial() == 1
    renewed = signed(server.folder_of_keys, "renewed", server.own, number=7)
    for new, old in zip(renewed, server.pair, strict=True):
        shutil.copy(new, old)
    deadline = time.monotonic() + 15
    while server.serial() != 7:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.2)
    server.pair[0].write_text("no certificate")
    while "renewed TLS files are not used" not in server.log:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.2)
    assert server.serial() == 7


def test_an_urgent_key_overtakes_those_that_wait(server: GuardedServer) -> None:
    ends: list[str] = []

    def ask(name: str) -> None:
        status, text = server.complete(name, max_tokens=128, ignore_eos=True)
        assert status == 200, text
        ends.append(name)

    waiting = [threading.Thread(target=ask, args=("patient",)) for _ in range(8)]
    for thread in waiting:
        thread.start()
    while not ends:
        time.sleep(0.005)
    urgent = threading.Thread(target=ask, args=("urgent",))
    urgent.start()
    for thread in (*waiting, urgent):
        thread.join(120)
    # Before it came one had ended, and one or two more may have while it was on its way.
    assert ends.index("urgent") <= 4, ends
    assert len(ends) == 9
