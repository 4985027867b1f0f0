"""`NeuronRuntime`: one follower's shard of the model, run by NxD Inference 0.8.

Mode `nxdi-cpu` runs against real NxD Inference on CPU and is tested; mode `device` is written to
the documented contract and was never run on a device. Both differ only in how an application is
loaded and what environment it needs.
"""

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from rufus_serve.artifacts.read_ahead import read_ahead
from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import CollectiveAborted, FollowerError, RuntimeStepError
from rufus_serve.model.weight_files import weights_bytes
from rufus_serve.protocol.messages import ChosenTokens, RuntimeInfo, StepRequest
from rufus_serve.protocol.runtime_info import ArtifactUse
from rufus_serve.runtime.base import GroupSpec, Progress
from rufus_serve.runtime.candidates import search_by
from rufus_serve.runtime.cores import available_cores
from rufus_serve.runtime.layouts.block import BlockLayout
from rufus_serve.runtime.layouts.calls import Call, check_token_ids
from rufus_serve.runtime.layouts.contiguous import ContiguousLayout
from rufus_serve.runtime.logits import StepLogits, WholeLogits
from rufus_serve.runtime.neuron import artifacts, cpu_mode
from rufus_serve.runtime.neuron.candidate_graphs import hide_logits, packed_output
from rufus_serve.runtime.neuron.device_logits import DeviceLogits, Packed, temperatures_of
from rufus_serve.runtime.neuron.environment import (
    check_device,
    device_environment,
    group_environment,
)
from rufus_serve.runtime.neuron.fused_speculation import chosen_tokens
from rufus_serve.runtime.neuron.host import (
    apply_environment,
    interface_towards,
    neuron_devices,
    product_name,
)
from rufus_serve.runtime.neuron.neuron_model import NeuronModel
from rufus_serve.runtime.neuron.topology import Topology

_MOST_SEARCH_THREADS = 8
"""More gain little: they share the host's memory."""
_PEER_GONE = ("connection closed", "connection reset", "timed out", "aborted", "broken pipe")


class NeuronRuntime:
    """Implements `Runtime`; one per process, since NxD Inference keeps process-wide state.

    After a loss the process must be replaced: graphs and process groups are bound when an
    application is loaded, so `can_rejoin` is False.
    """

    def __init__(
        self,
        config: ServeConfig,
        node_rank: int,
        *,
        group: int = 0,
        num_followers_on_host: int = 1,
    ) -> None:
        self.last_wait_s = 0.0
        self._config = config
        self._on_cpu = config.neuron.mode == "nxdi-cpu"
        self._topology = Topology.of(config, node_rank, num_followers_on_host, group=group)
        self._work = Path(tempfile.mkdtemp(prefix="rufus-neuron-"))
        self._aborted = threading.Event()
        self._application: Any = None
        self._artifacts: Path | None = None
        self._layout: ContiguousLayout | BlockLayout | None = None
        self._vocab_size = 0
        self._joined = self._loaded = False

    def load(self, progress: Progress) -> RuntimeInfo:
        """Check the model against the topology, compile where that is needed, read the weights.

        They are read into the host's memory; `warm_up` brings them to the device, since that
        binds the collectives.
        """
        started = time.monotonic()
        model = NeuronModel.of(self._config, self._topology)
        self._layout = make_layout(model)
        self._vocab_size = model.decoder.vocab_size
        apply_environment(self._environment())
        search_by(min(_MOST_SEARCH_THREADS, available_cores()))
        self._application = model.build(self._work)
        use = ArtifactUse()
        if not self._on_cpu:
            self._artifacts, use = artifacts.prepare(
                model, self._application, self._config, progress
            )
            files = artifacts.files_to_load(model, self._artifacts)
            read_ahead(files, threads=self._config.artifacts.threads, progress=progress)
        return runtime_info(model, load_s=time.monotonic() - started, use=use)

    def join(self, group: GroupSpec) -> None:
        """Learn where the peers are; what must be loaded together is loaded in `warm_up`."""
        if self._joined or self._application is None:
            raise FollowerError(
                "a Neuron follower joins one group in its life, after load; replace the process"
            )
        self._joined = True
        if self._on_cpu:
            cpu_mode.join_gloo(group, timeout_s=self._config.timeouts.warm_up_s)
            return
        cluster = self._config.cluster
        apply_environment(
            group_environment(
                group.rendezvous,
                epoch=group.epoch,
                port=cluster.rendezvous_port,
                interface=interface_towards(group.rendezvous, cluster.interface),
            )
        )

    def warm_up(self, progress: Progress) -> None:
        """Load the weights to the device, then run every graph once.

        NxD Inference's own warm-up is left out, as it hides its errors.
        """
        if not self._joined:
            raise FollowerError("a Neuron follower warms up after join")
        calls = list(self._layout.warm_up()) if self._layout else []
        progress(0, len(calls) + 1, "weights")
        self._load_weights()
        for done, call in enumerate(calls, start=1):
            progress(done, len(calls) + 1, "graphs")
            self._forward(call)
        progress(len(calls) + 1, len(calls) + 1, "graphs")

    def _load_weights(self) -> None:
        if self._on_cpu:
            cpu_mode.load_on_cpu(self._application)
        else:
            self._application.load(
                f"{self._artifacts}/",
                start_rank_id=self._topology.start_rank_id,
                local_ranks_size=self._topology.cores_per_node,
                skip_warmup=True,
            )
        if self._config.neuron.device_candidates:
            hide_logits(self._application)
        self._loaded = True

    def prefill(self, step: StepRequest) -> StepLogits | ChosenTokens | None:
        """Last-position logits of one row, or the token behind it, if the step wants them."""
        return self._run(self._ready().prefill(step), step)

    def decode(self, step: StepRequest) -> StepLogits | ChosenTokens | None:
        """Logits of R rows, or the tokens behind them."""
        return self._run(self._ready().decode(step), step)

    def abort(self) -> None:
        """Refuse further steps; a call that runs ends when its collective gives up.

        With gloo that is when a peer's connection closes, on a device NEURON_RT_EXEC_TIMEOUT;
        whoever cannot wait kills the process. Without effect until the weights are loaded, as
        there is no way back.
        """
        if self._loaded:
            self._aborted.set()

    def close(self) -> None:
        """Free the application, the process group and the working folder."""
        self._application = None
        if self._on_cpu and self._joined:
            cpu_mode.leave_gloo()
        shutil.rmtree(self._work, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        if self._on_cpu:
            return cpu_mode.ENVIRONMENT
        check_device(self._config, product_name(), devices=neuron_devices())
        return device_environment(self._config, self._topology, self._work)

    def _ready(self) -> ContiguousLayout | BlockLayout:
        if self._aborted.is_set():
            raise CollectiveAborted("the runtime was aborted; replace the process")
        if self._layout is None or not self._loaded:
            raise RuntimeStepError("a step before load, join and warm_up")
        return self._layout

    def _run(self, calls: list[Call], step: StepRequest) -> StepLogits | ChosenTokens | None:
        check_token_ids(step, self._vocab_size)
        if self._config.speculation.is_fused:
            chosen = self._choose(calls, step)
            return None if self._topology.node_rank or not step.want_logits else chosen
        if self._config.neuron.device_candidates:
            kept = self._find(calls, step)
        else:
            kept = self._bring(calls, step)
        if not step.want_logits:
            return None
        return WholeLogits(None) if self._topology.node_rank else kept

    def _choose(self, calls: list[Call], step: StepRequest) -> ChosenTokens:
        """What graphs that choose tokens chose."""
        most = self._config.num_speculative_tokens + 1
        token_ids = np.full((step.num_rows, most), -1, np.int32)
        for call in calls:
            token_ids[list(call.rows)] = chosen_tokens(self._forward(call))[call.places]
        return ChosenTokens(
            token_ids=token_ids, num_accepted=(token_ids >= 0).sum(axis=1, dtype=np.int32)
        )

    def _bring(self, calls: list[Call], step: StepRequest) -> StepLogits:
        """Logits in full; those that no call names are not set."""
        logits = np.empty((step.num_rows, self._vocab_size), np.float32)
        for call in calls:
            output = self._forward(call).logits.flatten(0, 1)[:, : self._vocab_size]
            logits[list(call.rows)] = output.float().numpy()[call.places]
        return WholeLogits(logits)

    def _find(self, calls: list[Call], step: StepRequest) -> StepLogits:
        """What graphs that find candidates answer."""
        temperatures = temperatures_of(step.wants, step.num_rows)
        answers = []
        for call in calls:
            told = call.tell_totals_at(temperatures)
            found, fetch = packed_output(
                self._application, self._forward(call), vocab_size=self._vocab_size
            )
            answers.append(Packed(call.rows, found[call.places], told, fetch))
        return DeviceLogits(answers)

    def _forward(self, call: Call) -> Any:
        """NxD Inference's answer; every node makes the same calls in the same order."""
        import torch

        arguments = {name: torch.from_numpy(value) for name, value in call.arguments.items()}
        try:
            with torch.inference_mode():
                return self._application.forward(**arguments)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            text = f"{type(error).__name__}: {error}"
            if self._aborted.is_set() or any(word in text.lower() for word in _PEER_GONE):
                raise CollectiveAborted(f"a peer is gone: {text}") from error
            raise RuntimeStepError(f"NxD Inference failed a call: {text}") from error


def make_layout(model: NeuronModel) -> ContiguousLayout | BlockLayout:
    """The KV layout of `model`."""
    return BlockLayout(model.shape) if model.shape.is_block else ContiguousLayout(model.shape)


def runtime_info(model: NeuronModel, *, load_s: float, use: ArtifactUse) -> RuntimeInfo:
    """What the leader must know of `model`."""
    decoder, shape = model.decoder, model.shape
    return RuntimeInfo(
        model_type=decoder.model_type,
        num_layers=decoder.num_layers,
        num_kv_heads=decoder.num_kv_heads,
        head_size=decoder.head_size,
        vocab_size=decoder.vocab_size,
        dtype=model.dtype,
        **shape.of_info(),
        can_rejoin=False,
        candidates=not shape.is_fused,
        device_candidates=model.num_candidates,
        weights_bytes=sum(map(weights_bytes, model.folders)) // model.topology.num_nodes,
        load_s=load_s,
        artifacts=use,
    )
