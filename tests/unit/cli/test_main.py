import subprocess
import sys
import time

import pytest

from rufus_serve import __version__, supervisor
from rufus_serve.cli import follower, main, serve
from rufus_serve.cli.commands import COMMANDS
from rufus_serve.errors import FollowerError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process; its exit code, output and error output."""
    monkeypatch.delenv("RUFUS_CONFIG", raising=False)

    def running(*arguments: str):
        code = main.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return running


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """The configurations that `serve` hands to the supervisor, which is not run."""
    given = []
    monkeypatch.setattr(supervisor, "serve", lambda config: given.append(config) or 0)
    monkeypatch.setattr(serve, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(serve, "refuse_missing_files", lambda folder: None)
    return given


def test_version_is_told_quickly_and_without_heavy_imports():
    code = (
        "import sys; from rufus_serve.cli.main import main; main(['--version'])\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'pydantic', 'numpy', 'zmq'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"rufus-serve {__version__}", "[]"]
    assert time.perf_counter() - start < 5


def test_help_lists_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {command.name} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(run, command):
    code, out, _ = run(command.name, "--help")
    assert code == 0
    first_line = (command.load().__doc__ or "").splitlines()[0]
    assert first_line
    assert first_line in out


def test_no_command_at_all_is_a_mistake(run):
    code, _, err = run()
    assert code == 2
    assert "commands:" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "unknown command serv; did you mean serve?"),
        (["serve", "m", "--node", "2"], "unknown flag --node; did you mean --nodes?"),
        (["serve", "m", "--ray-port=1"], "did you mean --cluster.ray-port?"),
        (["serve", "m", "--nodes"], "argument --nodes: expected one argument"),
        (["serve", "m", "n"], "unexpected argument 'n'"),
        (["serve", "m", "--port", "x"], "port: should be a valid integer"),
        (["serve", "--config", "/absent.yaml"], "cannot read /absent.yaml: "),
        (["config", "sho"], "invalid choice: 'sho'"),
        (["config", "show", "--nods", "1"], "unknown flag --nods; did you mean --nodes?"),
        (["follower"], "required: --leader"),
        (["follower", "--leader", "host"], "must be HOST:PORT"),
        (["follower", "--leader", "host:99999"], "must be HOST:PORT"),
        (["follower", "--leader", "[fd00::1]:6379"], "by IPv4"),
    ],
)
def test_a_mistake_is_one_line_on_standard_error_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_serve_hands_the_resolved_settings_to_the_supervisor(run, served, tmp_path, monkeypatch):
    file = tmp_path / "s.yaml"
    file.write_text("model: from-file\nnodes: 2\ncluster: {kind: local}\n")
    monkeypatch.setenv("RUFUS_CONFIG", str(file))
    monkeypatch.setenv("RUFUS_PORT", "9000")
    code, *_ = run("serve", "--no-prefix-caching", "--cpu.strict-neuron", "--buckets.prefill=8,16")
    (config,) = served
    assert code == 0
    assert (config.model, config.nodes, config.port) == ("from-file", 2, 9000)
    assert (config.prefix_caching, config.cpu.strict_neuron) == (False, True)
    assert config.buckets.prefill == (8, 16)
    assert config.cluster.kind == "local"


def test_require_artifacts_is_short_for_the_setting(run, served):
    run("serve", "m", "--require-artifacts", "--artifacts.location", "/artifacts")
    run("serve", "m", "--artifacts.required", "--artifacts.location", "/artifacts")
    run("serve", "m", "--no-require-artifacts", "--artifacts.location", "/artifacts")
    assert [config.artifacts.required for config in served] == [True, True, False]


def test_the_model_may_stand_before_or_after_flags(run, served):
    run("serve", "m", "--port", "0")
    run("serve", "--port", "0", "m")
    assert served[0] == served[1]


def test_an_error_ends_with_its_own_exit_code(run, served, monkeypatch):
    def fail(_config):
        raise FollowerError("follower 1: no memory")

    monkeypatch.setattr(supervisor, "serve", fail)
    assert run("serve", "m") == (7, "", "error: follower 1: no memory\n")


def test_control_c_ends_quietly(run, served, monkeypatch):
    def interrupt(_config):
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "serve", interrupt)
    assert run("serve", "m") == (130, "", "interrupted\n")


def test_follower_passes_on_where_the_leader_is(run, tmp_path, monkeypatch):
    from rufus_serve.cluster import ray_join

    given = []
    monkeypatch.setattr(ray_join, "offer_host", lambda **each: given.append(each) or 3)
    monkeypatch.setattr(follower, "configure_logging", lambda *_, **__: None)
    token = tmp_path / "token"
    token.write_text("t")
    code, *_ = run("follower", "--leader", "10.0.0.7:6379", "--token-file", str(token))
    assert code == 3
    assert given == [{"leader": "10.0.0.7:6379", "token_file": token, "address": ""}]


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m rufus_serve.cli.main config reference | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "# Configuration\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PermissionError(13, "Permission denied", "/models"), "Permission denied: '/models'"),
        (KeyError("rope"), "unforeseen KeyError: 'rope'; please report"),
    ],
)
def test_whatever_goes_wrong_the_last_line_says_what(run, monkeypatch, failure, said):
    def fail(_):
        raise failure

    monkeypatch.setattr(serve, "run", fail)
    code, _, err = run("serve", "m")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith(said)
