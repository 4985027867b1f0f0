import re
from pathlib import Path

from rufus_serve.cli.parser import Parser
from rufus_serve.cli.setting_flags import add_setting_arguments
from rufus_serve.leader.api import engine_args

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), flags=re.MULTILINE)


def test_every_flag_on_our_side_is_one_of_serve_or_of_follower() -> None:
    parser = Parser(prog="serve")
    add_setting_arguments(parser)
    known = {*parser.flags(), "--leader"}
    ours = {flag for _, ours in ROWS for flag in re.findall(r"--[a-z][a-z.-]*", ours)}
    assert len(ours) > 15
    assert ours <= known


def test_what_stands_beside_a_flag_of_vllm_is_the_setting_that_decides_it() -> None:
    checked = 0
    for theirs, ours in ROWS:
        flags = re.findall(r"--[a-z][a-z-]*", theirs)
        settings = re.findall(r"--[a-z][a-z.-]*", ours)
        if ours == "the same" or len(flags) != len(settings):
            continue
        for flag, setting in zip(flags, settings, strict=True):
            owner = engine_args.OURS.get(flag[2:].replace("-", "_"))
            if owner is not None:
                assert owner == setting[2:].replace("-", "_"), flag
                checked += 1
    assert checked > 8
