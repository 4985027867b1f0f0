"""`CpuRuntime`: the `Runtime` of followers that compute on CPUs."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import CollectiveAborted, RuntimeStepError
from rufus_serve.protocol.messages import Phase, RuntimeInfo, StepRequest
from rufus_serve.runtime.base import GroupSpec, Progress
from rufus_serve.runtime.candidates import search_by
from rufus_serve.runtime.cores import available_cores
from rufus_serve.runtime.cpu.collectives import Communicator, connect
from rufus_serve.runtime.cpu.decoders import TORCH, AnyDecoder, DecoderLoader
from rufus_serve.runtime.cpu.limits import fitting_blocks, resolve_dtype, resolve_max_model_len
from rufus_serve.runtime.cpu.sharded_logits import Place, ShardedLogits
from rufus_serve.runtime.cpu.warm_up import warm_up_steps
from rufus_serve.runtime.cpu.weight_source import open_weights
from rufus_serve.runtime.logits import StepLogits
from rufus_serve.shard.buckets import Buckets, resolve_buckets
from rufus_serve.shard.kv_cache import KvCache
from rufus_serve.shard.model_config import ModelConfig, read_model_config
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.step_inputs import StepInputs, pad_step

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded:
    """What stays from one epoch to the next."""

    model: ModelConfig
    partition: Partition
    decoder: AnyDecoder
    dtype: torch.dtype
    buckets: Buckets
    info: RuntimeInfo


@dataclass(frozen=True)
class _Joined:
    """What belongs to one epoch."""

    group: GroupSpec
    communicator: Communicator
    cache: KvCache


class CpuRuntime:
    """One follower's shard in torch. See `Runtime`."""

    def __init__(
        self, config: ServeConfig, node_rank: int, *, num_followers_on_host: int = 1
    ) -> None:
        self.last_wait_s = 0.0
        self._config = config
        self._node_rank = node_rank
        self._num_followers_on_host = num_followers_on_host
        self._aborted = threading.Event()
        self._loaded: _Loaded | None = None
        self._joined: _Joined | None = None

    def load(self, progress: Progress) -> RuntimeInfo:
        """Read this node's shard of the weights. Raises `ModelError` or `ArtifactError`."""
        started = time.monotonic()
        self._use_threads()
        model, partition = self._shape()
        max_model_len = resolve_max_model_len(self._config, model)
        source, use = open_weights(self._config, self._node_rank, progress)
        with contextlib.closing(source):
            dtype = resolve_dtype(self._config, model, source)
            num_blocks = fitting_blocks(
                self._config, model, partition=partition, dtype=dtype, max_model_len=max_model_len
            )
            loaded = DecoderLoader(
                self._config, model, partition, dtype=dtype, num_positions=max_model_len
            ).load(source, progress)
        buckets = self._buckets(max_model_len)
        info = RuntimeInfo(
            model_type=model.model_type,
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads,
            head_size=model.head_size,
            vocab_size=model.vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            block_size=self._config.block_size,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            prefill_buckets=buckets.prefill,
            decode_batch_buckets=buckets.decode_batch,
            context_buckets=buckets.context,
            weights_bytes=loaded.nbytes,
            kernels=loaded.kernels,
            load_s=time.monotonic() - started,
            artifacts=use,
            candidates=True,
            multi_token_decode=True,
            batched_prefill=loaded.kernels != TORCH,
            prompt_logprobs=True,
        )
        self._loaded = _Loaded(model, partition, loaded.decoder, dtype, buckets, info)
        return info

    def _shape(self) -> tuple[ModelConfig, Partition]:
        model = read_model_config(Path(self._config.model))
        nodes = self._config.nodes
        return model, Partition.of(model, num_nodes=nodes, node_rank=self._node_rank)

    def _buckets(self, max_model_len: int) -> Buckets:
        return resolve_buckets(
            self._config.buckets,
            max_rows=self._config.max_num_seqs * (1 + self._config.num_speculative_tokens),
            max_model_len=max_model_len,
        )

    def join(self, group: GroupSpec) -> None:
        """Build collectives for the epoch and an empty KV cache. Raises `CollectiveAborted`."""
        loaded = self._require_loaded()
        if (group.num_nodes, group.node_rank) != (self._config.nodes, self._node_rank):
            raise RuntimeStepError(
                f"weights were loaded for node {self._node_rank} of {self._config.nodes}, "
                f"but the group wants node {group.node_rank} of {group.num_nodes}"
            )
        if not 1 < group.num_blocks <= loaded.info.num_blocks:
            raise RuntimeStepError(
                f"the group wants {group.num_blocks} KV blocks, "
                f"but 2 to {loaded.info.num_blocks} fit on node {self._node_rank}"
            )
        self._leave()
        self._aborted.clear()
        self._use_threads()
        deadline_s = self._config.timeouts.warm_up_s
        communicator = connect(
            self._config.cpu.collective, group, aborted=self._aborted, deadline_s=deadline_s
        )
        cache = KvCache(
            loaded.model.num_layers,
            num_blocks=self._num_cache_blocks(group),
            block_size=self._config.block_size,
            num_kv_heads=loaded.partition.kv_heads.size,
            head_size=loaded.model.head_size,
            dtype=loaded.dtype,
        )
        self._joined = _Joined(group, communicator, cache)
        _LOGGER.info("joined epoch %d as node %d", group.epoch, group.node_rank)

    def warm_up(self, progress: Progress) -> None:
        """Run every bucket once; all followers call it together."""
        loaded, joined = self._require_loaded(), self._require_joined()
        steps = list(
            warm_up_steps(
                loaded.buckets, epoch=joined.group.epoch, block_size=self._config.block_size
            )
        )
        for index, step in enumerate(steps):
            self._run(step)
            progress(index + 1, len(steps), f"{step.phase.value} {step.num_new_tokens}")

    def prefill(self, step: StepRequest) -> StepLogits | None:
        """Run a prefill; logits of the last position, None unless the step wants them."""
        if step.phase is not Phase.PREFILL:
            raise RuntimeStepError(f"step {step.step_id} is a {step.phase.value}, not a prefill")
        if step.num_rows > 1 and not self._require_loaded().info.batched_prefill:
            raise RuntimeStepError(
                f"step {step.step_id} prefills {step.num_rows} rows, but this runtime one at a time"
            )
        return self._run(step)

    def decode(self, step: StepRequest) -> StepLogits | None:
        """Run a decode; logits of R rows."""
        if step.phase is not Phase.DECODE:
            raise RuntimeStepError(f"step {step.step_id} is a {step.phase.value}, not a decode")
        return self._run(step)

    def abort(self) -> None:
        """Make a running or the next collective raise `CollectiveAborted`; any thread."""
        self._aborted.set()

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._leave()
        self._loaded = None

    @torch.inference_mode()
    def _run(self, step: StepRequest) -> StepLogits | None:
        loaded, joined = self._require_loaded(), self._require_joined()
        inputs = pad_step(
            step,
            loaded.buckets,
            block_size=self._config.block_size,
            num_blocks=joined.group.num_blocks,
            vocab_size=loaded.model.vocab_size,
        )
        self.last_wait_s = 0.0
        return self._compute(inputs, want_logits=step.needs_logits)

    def _compute(self, inputs: StepInputs, *, want_logits: bool) -> ShardedLogits | None:
        """Run the model with the other followers."""
        loaded, joined = self._require_loaded(), self._require_joined()
        with self._together(joined.communicator):
            readout = loaded.decoder.run(
                inputs, joined.cache, all_reduce=joined.communicator.all_reduce
            )
        if not want_logits:
            return None
        ranks = range(self._config.nodes)
        ranges = [loaded.partition.of_node(rank).vocab_rows for rank in ranks]
        place = Place(ranges, self._node_rank, self._gather, self._all_reduce)
        return ShardedLogits(readout, inputs.last_tokens, place)

    @torch.inference_mode()
    def _gather(self, tensor: torch.Tensor, widths: Sequence[int]) -> list[torch.Tensor] | None:
        communicator = self._require_joined().communicator
        with self._together(communicator):
            return communicator.gather(tensor, widths)

    @torch.inference_mode()
    def _all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        communicator = self._require_joined().communicator
        with self._together(communicator):
            return communicator.all_reduce(tensor)

    @contextlib.contextmanager
    def _together(self, communicator: Communicator) -> Iterator[None]:
        """Count what is waited for peers; leave the epoch if it fails, lest they wait for us."""
        waited_s = communicator.wait_s
        try:
            yield
        except BaseException:
            self._leave()
            raise
        finally:
            self.last_wait_s += communicator.wait_s - waited_s

    def _num_cache_blocks(self, group: GroupSpec) -> int:
        """Blocks of the KV cache for `group`."""
        return group.num_blocks

    def _leave(self) -> None:
        """End the epoch: peers learn of it, and the KV cache is freed."""
        joined, self._joined = self._joined, None
        if joined is not None:
            joined.communicator.close()

    def _use_threads(self) -> None:
        """Give torch its threads; but one if kernels compute, whose own threads it would wake."""
        shared = available_cores() // self._num_followers_on_host
        num_threads = self._config.cpu.threads or max(1, shared)
        by_kernels = self._loaded is not None and self._loaded.info.kernels != TORCH
        torch.set_num_threads(1 if by_kernels else num_threads)
        search_by(num_threads)

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeStepError("the runtime has no weights yet; call load first")
        return self._loaded

    def _require_joined(self) -> _Joined:
        if self._joined is None:
            # Left by an aborted collective, so that a step queued behind it fails alike.
            raise CollectiveAborted("the runtime is in no group; call join first")
        return self._joined
