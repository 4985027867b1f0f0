"""`NeuronRuntime` over an application that answers with what it was asked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from neuron_sized import configured, decode, prefill

from rufus_serve.errors import CollectiveAborted, FollowerError, RuntimeStepError
from rufus_serve.leader.engine.step_builder import Want, row_wants
from rufus_serve.protocol.runtime_info import ArtifactUse
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.neuron import NeuronRuntime, cpu_mode
from rufus_serve.runtime.neuron import runtime as runtime_module
from rufus_serve.runtime.neuron.candidate_graphs import LeftLogits
from rufus_serve.runtime.neuron.neuron_model import NeuronModel

VOCAB = 32
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 128, "vocab_size": VOCAB, "max_position_embeddings": 2048,
}  # fmt: skip
GROUP = GroupSpec(
    epoch=1, node_rank=0, num_nodes=1, rendezvous="stem", same_host=True, num_blocks=5
)  # fmt: skip


class Application:
    """Its logits are the token of each row at index 0, padded beyond the vocabulary."""

    def __init__(self):
        self.error = None
        self.calls = []

    def forward(self, *, input_ids, **rest):
        if self.error:
            raise self.error
        self.calls.append(input_ids.tolist())
        logits = torch.zeros(input_ids.shape[0], 1, VOCAB + 4)
        logits[:, 0, 0] = input_ids[:, 0]
        return SimpleNamespace(logits=logits)


def nothing(*_):
    pass


@pytest.fixture
def application(monkeypatch):
    made = Application()
    monkeypatch.setattr(NeuronModel, "build", lambda self, work: made)
    monkeypatch.setattr(cpu_mode, "ENVIRONMENT", {})
    for name in ("join_gloo", "load_on_cpu", "leave_gloo"):
        monkeypatch.setattr(cpu_mode, name, lambda *_, **__: None)
    return made


@pytest.fixture
def make(application, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    made = []

    def make(node_rank=0, layout="contiguous", nodes=1, **settings):
        config = configured(layout, model=str(tmp_path), nodes=nodes, **settings)
        made.append(NeuronRuntime(config, node_rank))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def runtime(make, application):
    runtime = make()
    runtime.load(nothing)
    runtime.join(GROUP)
    runtime.warm_up(nothing)
    application.calls.clear()
    return runtime


def test_the_leader_is_told_that_prompts_come_whole_and_processes_are_replaced(make):
    info = make().load(nothing)
    assert (info.block_size, info.num_blocks, info.decode_batch_buckets) == (64, 5, (4,))
    assert not info.prefix_caching
    assert not info.segmented_prefill
    assert not info.can_rejoin
    assert info.dtype == "float32"


def test_the_block_layout_has_prefix_caching_and_segments(make):
    info = make(layout="block").load(nothing)
    assert info.prefix_caching
    assert info.segmented_prefill
    assert (info.block_size, info.num_blocks) == (32, 65)


def test_logits_return_to_the_leaders_rows(runtime, application):
    kept = runtime.decode(decode([5, 6, 7], [9, 0, 3], [[4], [1], [2]]))
    logits = kept.rows(np.arange(3))
    assert logits.shape == (3, VOCAB)
    assert logits.dtype == np.float32
    assert logits[:, 0].tolist() == [5, 6, 7]
    assert len(application.calls) == 2


class FindingCandidates(Application):
    """Its graphs find two: the row's token at logit 0, and token 1 below it; the total is told."""

    def __init__(self):
        super().__init__()
        self.left_logits = LeftLogits()
        self.neuron_config, self.models = SimpleNamespace(), []

    def forward(self, *, sampling_params, **rest):
        output = super().forward(**rest)
        self.left_logits.tensor = output.logits
        rows = len(output.logits)
        best, one = output.logits[:, 0, :1], torch.ones(rows, 1)
        numbers = torch.arange(rows).unsqueeze(1)
        tokens = torch.cat((best, -one, 0 * one, one, sampling_params[:, 2:], numbers), dim=1)
        return SimpleNamespace(logits=None, tokens=tokens)


def test_candidates_that_graphs_find_return_to_the_leaders_rows(make, monkeypatch, tmp_path):
    application = FindingCandidates()
    monkeypatch.setattr(NeuronModel, "build", lambda self, work: application)
    make()  # Writes the configuration.
    neuron = {"mode": "nxdi-cpu", "cores_per_node": 1, "device_candidates": 2}
    runtime = NeuronRuntime(configured("contiguous", model=str(tmp_path), neuron=neuron), 0)
    assert runtime.load(nothing).device_candidates == 2
    runtime.join(GROUP)
    runtime.warm_up(nothing)
    assert application.neuron_config.output_logits is False
    wants = row_wants([Want(2, (0.5, 0.0)), Want(1), Want(1, (0.25, 0.0))])
    step = replace(decode([5, 6, 7], [9, 0, 3], [[4], [1], [2]]), wants=wants)
    kept = runtime.decode(step)
    found = kept.candidates(wants)
    assert found.logits.tolist() == [5, -1, 6, 7]
    assert found.ids.tolist() == [0, 1, 0, 0]
    assert found.log_totals[:, 0].tolist() == [0.5, 0.0, 0.25]
    assert kept.rows(np.arange(3))[:, 0].tolist() == [5, 6, 7]
    runtime.close()


def test_only_node_rank_0_returns_logits(make, application):
    other = make(node_rank=1, nodes=2)
    other.load(nothing)
    other.join(GROUP)
    other.warm_up(nothing)
    application.calls.clear()
    assert other.prefill(prefill([5, 6], [1])).rows(np.arange(1)) is None
    assert application.calls == [[[5, 6]]]


def test_unwanted_logits_are_not_returned(runtime):
    assert runtime.prefill(prefill([5, 6], [1], want_logits=False)) is None


def test_warm_up_loads_the_weights_and_runs_each_graph(make, application):
    runtime, seen = make(), []
    runtime.load(nothing)
    runtime.join(GROUP)
    runtime.warm_up(lambda *progress: seen.append(progress))
    assert seen[0] == (0, 4, "weights")
    assert seen[1:] == [(done, 4, "graphs") for done in (1, 2, 3, 4)]
    assert len(application.calls) == 3


def test_a_devices_weights_are_read_into_memory_while_loading(make, monkeypatch, tmp_path):
    config = configured("contiguous", model=str(tmp_path), neuron={"cores_per_node": 2})
    read = []
    monkeypatch.setattr(runtime_module, "apply_environment", nothing)
    monkeypatch.setattr(runtime_module, "neuron_devices", lambda: ["neuron0"])
    monkeypatch.setattr(runtime_module.artifacts, "prepare", lambda *_: (tmp_path, ArtifactUse()))
    monkeypatch.setattr(
        runtime_module, "read_ahead", lambda files, **_: read.extend(path.name for path in files)
    )
    make()  # Writes the configuration.
    runtime = NeuronRuntime(config, 0)
    runtime.load(nothing)
    runtime.close()
    shards = [f"tp{rank}_sharded_checkpoint.safetensors" for rank in (0, 1)]
    assert read == ["model.pt", *shards]


def test_tokens_beyond_the_vocabulary_are_refused(runtime, application):
    for token in (-1, VOCAB):
        with pytest.raises(RuntimeStepError, match=f"vocabulary's size {VOCAB}"):
            runtime.prefill(prefill([5, token], [1]))
    assert application.calls == []


def test_a_lost_peer_is_told_from_a_refused_step(runtime, application):
    application.error = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:5")
    with pytest.raises(CollectiveAborted, match="a peer is gone"):
        runtime.prefill(prefill([5, 6], [1]))
    application.error = ValueError("Input len 70 exceeds largest bucket")
    with pytest.raises(RuntimeStepError, match="Input len 70") as caught:
        runtime.prefill(prefill([5, 6], [1]))
    assert not isinstance(caught.value, CollectiveAborted)


def test_an_aborted_runtime_takes_no_further_step(runtime):
    runtime.abort()
    with pytest.raises(CollectiveAborted, match="replace the process"):
        runtime.prefill(prefill([5, 6], [1]))


def test_an_abort_before_the_group_stands_is_forgotten(make):
    runtime = make()
    runtime.load(nothing)
    runtime.abort()
    runtime.join(GROUP)
    runtime.abort()
    runtime.warm_up(nothing)
    assert runtime.prefill(prefill([5, 6], [1])) is not None


def test_a_second_group_asks_for_a_new_process(runtime):
    with pytest.raises(FollowerError, match="replace the process"):
        runtime.join(GROUP)


def test_a_step_before_the_group_is_refused(make):
    runtime = make()
    runtime.load(nothing)
    with pytest.raises(FollowerError, match="after join"):
        runtime.warm_up(nothing)
    runtime.join(GROUP)
    with pytest.raises(RuntimeStepError, match="before load, join and warm_up"):
        runtime.prefill(prefill([5, 6], [1]))


FUSED = {"method": "fused", "num_speculative_tokens": 2}


@pytest.mark.parametrize("on_device", [True, False], ids=["device", "cpu"])
@pytest.mark.parametrize("node_rank", [0, 1])
def test_what_graphs_choose_returns_to_the_leaders_rows(
    make, monkeypatch, application, tmp_path, on_device, node_rank
):
    """Each row's own token, and as many more as its token's last digit says."""

    def forward(*, input_ids, **_):
        first = input_ids[:, :1].int()
        behind = torch.where(torch.arange(1, 3) <= first % 10, first + 1, -1)
        tokens = torch.cat((first, behind), dim=1).int()
        outputs = [tokens, tokens[:, :1], None, None] if on_device else tokens
        return SimpleNamespace(fused_outputs=outputs)

    monkeypatch.setattr(application, "forward", forward)
    speculation = FUSED | {"draft_model": str(tmp_path)}
    runtime = make(nodes=2, node_rank=node_rank, speculation=speculation)
    info = runtime.load(nothing)
    assert (info.chosen_tokens, info.candidates) == (3, False)
    runtime.join(GROUP)
    runtime.warm_up(nothing)
    chosen = runtime.decode(decode([11, 20, 12], [9, 8, 3], [[4], [1], [2]]))
    if node_rank:
        assert chosen is None
        return
    assert chosen.token_ids.tolist() == [[11, 12, -1], [20, -1, -1], [12, 13, 13]]
    assert chosen.num_accepted.tolist() == [2, 1, 3]
    assert runtime.prefill(prefill([5, 6, 10], [1])).num_accepted.tolist() == [3]
