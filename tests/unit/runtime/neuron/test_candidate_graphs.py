"""The graphs' second output on a device, which these stand-ins take the place of."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rufus_serve.runtime.neuron import candidate_graphs

RANKS, ROWS, VOCAB = 2, 4, 6


class OnDevice:
    """A tensor that is not on the host."""

    def __init__(self, tensor):
        self.tensor, self.fetched = tensor, 0

    def to(self, device):
        assert device == "cpu"
        self.fetched += 1
        return self.tensor


class NxdModel:
    """Graphs that find two candidates; each rank returns all outputs."""

    def __init__(self):
        self.packed = OnDevice(torch.arange(ROWS * 5.0).reshape(ROWS, 5))
        self.logits = OnDevice(torch.arange(ROWS * 8.0).reshape(ROWS, 1, 8))
        self.inputs = []

    def forward_ranked(self, inputs):
        self.inputs.append(inputs)
        return [[self.packed, self.logits] for _ in range(RANKS)]


class Wrapper:
    """Pads and orders a batch around `_forward`, as NxD Inference does for one output."""

    def __init__(self):
        self.model = SimpleNamespace(nxd_model=NxdModel())
        self.neuron_config = SimpleNamespace(local_ranks_size=RANKS, output_logits=True)

    def is_neuron(self):
        return True

    def forward(self, lines):
        assert not self.neuron_config.output_logits
        return torch.index_select(self._forward("padded", "inputs"), 0, lines)


class Application:
    _model_cls = torch.nn.Module

    def __init__(self):
        self.neuron_config = SimpleNamespace(output_logits=True)
        self.models = [self.get_model_wrapper_cls()()]

    def forward(self, lines):
        return SimpleNamespace(tokens=self.models[0].forward(lines))


@pytest.fixture
def application(monkeypatch):
    monkeypatch.setattr(candidate_graphs, "_wrapper_class", lambda: Wrapper)
    application = candidate_graphs.with_candidates(Application)()
    candidate_graphs.hide_logits(application)
    return application


def test_candidates_come_to_the_host_and_logits_stay_until_they_are_fetched(application):
    output = application.forward(torch.tensor([3, 1]))
    model = application.models[0].model.nxd_model
    found, fetch = candidate_graphs.packed_output(application, output, vocab_size=VOCAB)
    assert model.inputs == [[["padded", "inputs"]] * RANKS]
    assert found[:, :5].tolist() == model.packed.tensor[[3, 1]].tolist()
    assert model.logits.fetched == 0
    whole = fetch()
    assert whole.dtype == np.float32
    assert whole.tolist() == model.logits.tensor[:, 0, :VOCAB].tolist()


def test_each_row_names_its_logits_wherever_the_batch_was_put(application):
    output = application.forward(torch.tensor([3, 1]))
    found, _fetch = candidate_graphs.packed_output(application, output, vocab_size=VOCAB)
    assert found[:, -1].tolist() == [3, 1]


def test_a_later_call_leaves_what_an_earlier_one_left(application):
    output = application.forward(torch.tensor([0, 2]))
    _, fetch = candidate_graphs.packed_output(application, output, vocab_size=VOCAB)
    model = application.models[0].model.nxd_model
    kept, model.logits = model.logits, OnDevice(torch.zeros(ROWS, 1, 8))
    application.forward(torch.tensor([0, 2]))
    assert fetch().tolist() == kept.tensor[:, 0, :VOCAB].tolist()
    assert model.logits.fetched == 0
