"""What hosts must have in common, and what the links between them tell; pure."""

from collections.abc import Iterator, Mapping, Sequence

from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.doctor.messages import Link, NodeReport
from rufus_serve.doctor.network import CONTROL, LAST_RENDEZVOUS, RAY, RENDEZVOUS, STEP
from rufus_serve.errors import ClusterError, HandshakeRefused, ModelError

REQUIRED = ("rufus-serve", "Python", "Ray")
"""Versions that must be equal; others only should be."""

_CLOCK_S = 0.5
_S3_CLOCK_S = 900.0
"""S3 refuses requests whose signature is older or newer than 15 minutes."""
_FIREWALL = (
    "allow all TCP within the group: aws ec2 authorize-security-group-ingress --group-id SG "
    "--source-group SG --protocol -1; then sudo iptables -S (table: deploy/README.md)"
)


def compare_versions(reports: Sequence[NodeReport], leader: Mapping[str, str]) -> Iterator[Finding]:
    """Versions of all hosts, and of the `leader` process, whose environment may be another."""
    say = Findings("versions agree")
    names = dict.fromkeys(name for report in reports for name in report.facts)
    differing = 0
    for name in names:
        holders: dict[str, list[str]] = {}
        if name in leader:
            holders.setdefault(leader[name], []).append("the leader")
        for report in reports:
            holders.setdefault(report.facts.get(name, ""), []).append(report.node)
        if len(holders) > 1:
            differing += 1
            yield _differing(say, name, holders)
    if not differing:
        shown = ", ".join(f"{name} {reports[0].facts[name]}" for name in REQUIRED)
        yield say.ok(f"{shown} everywhere")


def _differing(say: Findings, name: str, holders: Mapping[str, Sequence[str]]) -> Finding:
    what = f"{name}: " + "; ".join(
        f"{version or 'none'} on {', '.join(nodes)}" for version, nodes in holders.items()
    )
    if name in REQUIRED:
        return say.error(
            what,
            why="peers of another version are refused when they join",
            fix="install one version of Python, Ray and rufus-serve on every host: the pins are in "
            "requirements/; then set cluster.python",
            code=HandshakeRefused.exit_code,
        )
    return say.warning(
        what,
        why="one group runs in lock-step, so the hosts should not differ",
        fix="bring all hosts to one Neuron SDK and instance type",
    )


def compare_models(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """Every host reads its own copy of the checkpoint."""
    say = Findings("models agree")
    holders: dict[str, list[str]] = {}
    for report in reports:
        if report.model:
            holders.setdefault(report.model, []).append(report.node)
    if len(holders) > 1:
        groups = " / ".join(", ".join(nodes) for nodes in holders.values())
        yield say.error(
            f"the checkpoints differ between {groups}",
            why="each host cuts its shard out of its own copy; mixed shards give nonsense",
            fix="copy one checkpoint to all hosts: rsync -a --checksum MODEL/ HOST:MODEL/",
            code=ModelError.exit_code,
        )
    elif holders:
        yield say.ok(f"one checkpoint on {len(reports)} hosts")


def judge_links(links: Sequence[Link]) -> Iterator[Finding]:
    """Whether every host reaches every other, on every port it needs."""
    say = Findings("reachability")
    bad = [link for link in links if _trouble(link)]
    for link in bad:
        yield say.error(
            f"{link.source} cannot reach {_where(link)}: {_trouble(link)}",
            why=_purpose(link.target.purpose),
            fix=_FIREWALL if not link.answered_by else "set cluster.interface on that host",
            code=ClusterError.exit_code,
        )
    if links and not bad:
        slowest = max(link.round_trip_s for link in links) * 1e3
        yield say.ok(f"{len(links)} connections, both ways; slowest round trip {slowest:.2f} ms")


def _trouble(link: Link) -> str:
    if link.fault:
        return link.fault
    other = link.answered_by != link.target.node
    return f"another host answers there: {link.answered_by}" if other else ""


def _where(link: Link) -> str:
    target = link.target
    return f"{target.node} at {target.address}:{target.port} ({target.purpose})"


def _purpose(purpose: str) -> str:
    return {
        CONTROL: "followers report to the supervisor there",
        STEP: "followers await step inputs there",
        RENDEZVOUS: "followers set up their collectives there; any of them may be the first",
        LAST_RENDEZVOUS: "epochs take 16 ports in turn to set up their collectives",
        RAY: "Ray's processes on all hosts talk to one another",
    }.get(purpose, "the Neuron runtime takes free ports to set up its rings")


def judge_mtu(reports: Sequence[NodeReport], links: Sequence[Link]) -> Iterator[Finding]:
    """Whether large messages come through, and the sizes of frames agree."""
    say = Findings("mtu")
    mtus = {report.node: report.mtu for report in reports if report.mtu}
    lost = [link for link in links if link.bulk_fault]
    for link in lost:
        yield say.error(
            f"{link.source} to {_where(link)}: small messages pass, 256 KiB do not: "
            f"{link.bulk_fault} (path MTU {link.path_mtu})",
            why="step inputs, logits and collectives are large messages",
            fix=f"sudo ip link set dev INTERFACE mtu {_smaller(link.path_mtu)} on both hosts, and "
            "let ICMP 'fragmentation needed' pass",
            code=ClusterError.exit_code,
        )
    if len(set(mtus.values())) > 1:
        yield say.warning(
            ", ".join(f"{node}: {mtu}" for node, mtu in mtus.items()),
            why="frames larger than the other end takes are dropped, at times without a word",
            fix=f"sudo ip link set dev INTERFACE mtu {min(mtus.values())}",
        )
    elif not lost and mtus:
        paths = {link.path_mtu for link in links if link.path_mtu}
        path = f", least path MTU {min(paths)}" if paths else ""
        yield say.ok(f"{next(iter(mtus.values()))} everywhere{path}; 256 KiB come through")


def _smaller(path_mtu: int) -> int:
    return 1500 if path_mtu > 1500 else 1400


def judge_clocks(links: Sequence[Link], leader: str) -> Iterator[Finding]:
    """Each host's clock against the leader's."""
    say = Findings("clock")
    best: dict[str, Link] = {}
    for link in links:
        node = link.target.node
        if link.source == leader and link.round_trip_s and not _trouble(link):
            best[node] = min(best.get(node, link), link, key=lambda each: each.round_trip_s)
    late = {node: link for node, link in best.items() if abs(link.offset_s) > _CLOCK_S}
    for node, link in late.items():
        s3 = "; S3 refuses such a host's requests" if abs(link.offset_s) > _S3_CLOCK_S else ""
        yield say.warning(
            f"{node} is {link.offset_s:+.2f} s off {leader} (± {link.round_trip_s / 2:.4f} s)",
            why=f"logs and metrics of the hosts cannot be laid side by side{s3}",
            fix="sudo systemctl enable --now chronyd; sudo chronyc makestep",
        )
    if best and not late:
        largest = max(abs(link.offset_s) for link in best.values()) * 1e3
        yield say.ok(f"at most {largest:.1f} ms off {leader}")
