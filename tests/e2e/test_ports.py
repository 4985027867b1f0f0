"""What a running server listens on is what SECURITY.md says."""

import ipaddress
import re
from pathlib import Path

import psutil

from tests.e2e.server import ROOT, Server, serving

_RAYS = ("ray", "raylet", "gcs_server", "rufus_serve.cluster.ray_driver")
_ROLES = {
    "rufus_serve.leader": "leader",
    "rufus_serve.follower": "follower",
    "rufus-serve": "supervisor",
}


def documented() -> dict[str, list[str]]:
    """The addresses that the table gives each process."""
    table = (ROOT / "SECURITY.md").read_text().partition("## Listening ports")[2]
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| ([^|]+) \|", table, re.MULTILINE)
    found: dict[str, list[str]] = {}
    for process, address in rows:
        if process != "process":
            found.setdefault(process, []).append(address)
    return found


def role(process: psutil.Process) -> str:
    words = process.cmdline()
    if is_rays(process):
        return "ray"
    if words[1:2] == ["-m"]:
        return _ROLES.get(words[2], words[2])
    name = Path(words[1] if len(words) > 1 else words[0]).name if words else process.name()
    return _ROLES.get(name, name)


def is_rays(process: psutil.Process) -> bool:
    """Whether it is of Ray's own, its driver included."""
    words = process.cmdline()
    of_package = any("/ray/" in word for word in words[:3])
    return of_package or any(
        word.startswith(("ray::", "ray.")) or Path(word).name in _RAYS for word in words[:3]
    )


def listening(server: Server) -> list[tuple[str, str, int]]:
    """Role, address and port of every TCP socket that awaits connections."""
    return [
        (role(process), each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for process in server.tagged()
        for each in process.net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN
    ]


def test_a_server_on_one_host_listens_where_the_table_says_and_on_loopback_only(
    tiny_model: Path,
) -> None:
    with serving(tiny_model, "--cluster.kind=local", "--nodes=2") as server:
        found = listening(server)
        port = server.port
    table = documented()
    for process, address, _ in found:
        assert process in table, found
        assert "loopback" in " ".join(table[process])
        assert ipaddress.ip_address(address).is_loopback, found
    assert [each for each in found if each[2] == port] == [("leader", "127.0.0.1", port)]
    by_role = [process for process, _, _ in found]
    assert sorted(by_role) == ["follower", "follower", "leader", "supervisor"]


def test_ray_on_one_host_listens_on_loopback_only_and_alone_holds_its_token(
    demo_server: Server,
) -> None:
    found = listening(demo_server)
    rays = [address for process, address, _ in found if process == "ray"]
    assert len(rays) > 3, found
    assert all(ipaddress.ip_address(address).is_loopback for _, address, _ in found), found
    holders = {role(each) for each in demo_server.tagged() if "RAY_AUTH_TOKEN" in each.environ()}
    assert holders == {"ray"}
    folders = [path for path in demo_server.temporary.rglob("*") if path.is_dir()]
    first = [path for path in folders if path.parent == demo_server.temporary]
    assert first
    assert all(path.stat().st_mode & 0o077 == 0 for path in first), first
