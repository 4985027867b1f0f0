"""TLS of the HTTP server: renewed and unusable files, peers that say nothing."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
from raw_http import Address, exchange, run, serving

from rufus_serve.config.schema import HttpConfig
from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.tls import ServerTls


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    path = folder / "server.pem"
    key, made = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(made.read_text() + key.read_text())
    return path


async def served_name(address: Address) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*address, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(shown, bytes)
    return shown


def test_tls_takes_a_renewed_certificate_and_keeps_a_good_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = certificate(tmp_path, "first")
        async with serving(tls_certificate=path) as (_, address):
            assert b"first" in await served_name(address)
            certificate(tmp_path, "second")
            await asyncio.sleep(2.5)
            assert b"second" in await served_name(address)
            path.write_text("broken")
            await asyncio.sleep(2.5)
            assert b"second" in await served_name(address)

    run(scenario)


@pytest.mark.parametrize("wrong", ["tls_certificate", "tls_client_ca"])
def test_the_tls_file_that_cannot_be_used_is_named(tmp_path: Path, wrong: str) -> None:
    good, bad = certificate(tmp_path, "a"), tmp_path / "bad.pem"
    bad.write_text("no certificate")
    files = {"tls_certificate": good, "tls_client_ca": good} | {wrong: bad}
    with pytest.raises(ConfigError, match=rf"http\.{wrong} .*bad\.pem"):
        ServerTls(HttpConfig(**files))


def test_tls_handshakes_have_a_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tls_certificate=certificate(tmp_path, "x")) as (_, address):
            assert await asyncio.wait_for(exchange(address, b""), 10) == b""

    run(scenario)
