from typing import Any

from msgspec.structs import replace

from rufus_serve.doctor.comparison import (
    compare_models,
    compare_versions,
    judge_clocks,
    judge_links,
    judge_mtu,
)
from rufus_serve.doctor.messages import Link, NodeReport, Target

FACTS = {"rufus-serve": "0.1.0", "Python": "3.11", "Ray": "2.60.0"}
TARGET = Target(node="b", address="10.0.0.2", port=6401, purpose="cluster.step_port")


def report(node: str, **fields: Any) -> NodeReport:
    common = {
        "node": node, "address": "10.0.0.1", "findings": (), "facts": FACTS, "model": "m",
        "mtu": 9001,
    }  # fmt: skip
    return NodeReport(**(common | fields))


def link(**fields: Any) -> Link:
    common = {"source": "a", "target": TARGET, "answered_by": "b", "round_trip_s": 0.0002}
    return Link(**(common | fields))


def test_equal_versions_are_shown_once():
    (found,) = compare_versions([report("a"), report("b")], FACTS)
    assert (found.level, found.what) == (
        "ok",
        "rufus-serve 0.1.0, Python 3.11, Ray 2.60.0 everywhere",
    )


def test_what_must_be_equal_is_an_error_with_every_host():
    other = report("b", facts=FACTS | {"Ray": "2.9.1"})
    (found,) = compare_versions([report("a"), other], FACTS)
    assert (found.level, found.exit_code) == ("error", 6)
    assert found.what == "Ray: 2.60.0 on the leader, a; 2.9.1 on b"


def test_the_leader_may_live_in_another_environment_than_its_hosts_follower():
    (found,) = compare_versions([report("a")], FACTS | {"Python": "3.12"})
    assert found.what == "Python: 3.12 on the leader; 3.11 on a"


def test_what_only_should_be_equal_is_a_warning():
    facts = [FACTS | {"driver neuron": version} for version in ("2.26.5.0", "")]
    (found,) = compare_versions([report("a", facts=facts[0]), report("b", facts=facts[1])], FACTS)
    assert (found.level, found.what) == ("warning", "driver neuron: 2.26.5.0 on a; none on b")


def test_hosts_with_other_checkpoints_are_grouped():
    reports = [report("a"), report("b", model="n"), report("c"), report("d", model="")]
    (found,) = compare_models(reports)
    assert (found.level, found.exit_code) == ("error", 3)
    assert found.what == "the checkpoints differ between a, c / b"
    assert next(compare_models([report("a"), report("b")])).level == "ok"


def test_every_link_that_fails_is_told_with_its_purpose():
    links = [link(), link(fault="timed out", answered_by="")]
    (found,) = judge_links(links)
    assert (found.level, found.exit_code) == ("error", 5)
    assert found.what == "a cannot reach b at 10.0.0.2:6401 (cluster.step_port): timed out"
    assert found.why == "followers await step inputs there"
    assert "authorize-security-group-ingress" in found.fix


def test_an_address_that_leads_to_another_host_is_told():
    (found,) = judge_links([link(answered_by="c")])
    assert "another host answers there: c" in found.what
    assert "cluster.interface" in found.fix


def test_good_links_show_the_slowest_round_trip():
    (found,) = judge_links([link(), link(round_trip_s=0.0153)])
    assert (found.level, found.what) == (
        "ok", "2 connections, both ways; slowest round trip 15.30 ms",
    )  # fmt: skip
    assert list(judge_links([])) == []


def test_messages_that_only_pass_when_small_are_an_mtu_error():
    found = next(judge_mtu([report("a")], [link(bulk_fault="timed out", path_mtu=9001)]))
    assert (found.level, found.exit_code) == ("error", 5)
    assert "small messages pass, 256 KiB do not: timed out (path MTU 9001)" in found.what
    assert "mtu 1500" in found.fix


def test_other_mtus_are_a_warning_and_equal_ones_good():
    (found,) = judge_mtu([report("a"), report("b", mtu=1500)], [link()])
    assert (found.level, found.what) == ("warning", "a: 9001, b: 1500")
    assert found.fix.endswith("mtu 1500")
    (found,) = judge_mtu([report("a"), report("b")], [link(path_mtu=1500), link(path_mtu=9001)])
    assert (found.level, found.what) == (
        "ok", "9001 everywhere, least path MTU 1500; 256 KiB come through",
    )  # fmt: skip


def test_clocks_are_judged_by_the_fastest_round_trip_from_the_leader():
    slow = link(round_trip_s=2.0, offset_s=1.0)
    assert next(judge_clocks([slow, link(offset_s=-0.004)], "a")).what == "at most 4.0 ms off a"
    (found,) = judge_clocks([link(offset_s=-3.25)], "a")
    assert (found.level, found.what) == ("warning", "b is -3.25 s off a (± 0.0001 s)")
    assert "S3" not in found.why
    assert "chronyc makestep" in found.fix
    (found,) = judge_clocks([link(offset_s=1000.0)], "a")
    assert "S3 refuses" in found.why


def test_clocks_are_not_judged_by_links_that_failed_or_only_connected():
    back = link(source="b", target=replace(TARGET, node="a"), offset_s=9.0, answered_by="a")
    silent = link(round_trip_s=0.0, offset_s=9.0)
    assert list(judge_clocks([back, silent, link(fault="refused", offset_s=9.0)], "a")) == []
