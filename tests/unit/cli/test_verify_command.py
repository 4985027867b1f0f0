import json

import pytest
from tests.unit.verify.test_verify_comparison import Served, choice, referring

from rufus_serve.cli.main import main
from rufus_serve.verify import endpoint
from rufus_serve.verify.reference import write_reference


@pytest.fixture
def against(tmp_path, monkeypatch):
    """Runs the command against a reference and an endpoint that answers as told."""

    def run(reference, served, *flags):
        path = tmp_path / "reference.json"
        write_reference(path, reference)
        monkeypatch.setattr(endpoint.Endpoint, "named", lambda self: self)
        monkeypatch.setattr(endpoint.Endpoint, "greedy", lambda _, *asked: served(*asked))
        return main(["verify", f"--against={path}", "--url=http://nowhere", *flags])

    return run


def test_the_model_ends_with_0(against, capsys):
    assert against(referring(choice(1, 2, 3)), Served(1)) == 0
    assert "100.00% the same" in capsys.readouterr().out


def test_another_model_ends_with_17_and_the_first_divergence(against, capsys):
    reference = referring(choice(1, 2, 0.1), choice(3, 4, 3))
    assert against(reference, Served(2, 4)) == 17
    told = capsys.readouterr()
    assert "first divergence: prompt 0, token 0: 2 instead of 1, 0.1000 nats" in told.out
    assert "worst divergence: prompt 0, token 1: 4 instead of 3, 3.0000 nats" in told.out
    assert told.err.startswith("error: prompt 0, token 1")


def test_json_holds_all_divergences(against, capsys):
    against(referring(choice(1, 2, 0.1)), Served(2), "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["agreement"] == 0
    assert report["divergences"][0]["found"] == 2


@pytest.mark.parametrize("flags", [[], ["--make=a", "--against=b"]])
def test_it_is_told_either_to_make_or_to_compare(flags, capsys):
    assert main(["verify", "model", *flags]) == 2
    assert "either --make FILE or --against FILE" in capsys.readouterr().err
