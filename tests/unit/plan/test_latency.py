import msgspec
import pytest

from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.latency import EFA_HOP_MS, Placement, decode_estimate, prefill_ms
from rufus_serve.plan.memory import core_weights, kv_bytes_per_token
from rufus_serve.plan.published import LLAMA3_8B, LLAMA3_70B, PUBLISHED, compare
from rufus_serve.plan.tensor_parallel import tensor_parallel


def placed(shape=LLAMA3_70B, *, num_nodes=1, instance="trn1.32xlarge") -> Placement:
    hardware = instance_named(instance)
    degree = num_nodes * hardware.num_cores
    tp = tensor_parallel(shape, degree)
    return Placement(
        instance=hardware,
        shape=shape,
        weights=core_weights(shape, tp, "bfloat16"),
        kv_per_token=kv_bytes_per_token(shape, tp, "bfloat16"),
        num_nodes=num_nodes,
        degree=degree,
    )


def the_run(model: str, rows: int, tokens_in: int, tokens_out: int):
    return next(
        run
        for run in PUBLISHED
        if (run.model, run.rows, run.tokens_in, run.tokens_out)
        == (model, rows, tokens_in, tokens_out)
    )


@pytest.mark.parametrize(
    ("model", "tokens", "measured_ms"),
    [("Llama-3-70B", (128, 1024), 24.5), ("Llama-3-8B", (128, 3968), 5.86)],
)
def test_single_stream_decode_is_within_a_tenth_of_the_measurement(model, tokens, measured_ms):
    run = the_run(model, 1, *tokens)
    assert run.tpot_ms == measured_ms
    assert compare(run).tpot_ms == pytest.approx(measured_ms, rel=0.10)


@pytest.mark.parametrize("run", [run for run in PUBLISHED if run.fitted], ids=str)
def test_decode_of_every_fitted_run_is_within_an_eighth(run):
    assert abs(compare(run).tpot_error) < 0.125


@pytest.mark.parametrize("run", [run for run in PUBLISHED if not run.fitted], ids=str)
def test_runs_that_were_not_fitted_are_within_a_fifth_or_not_predicted(run):
    error = compare(run).tpot_error
    assert (error is None) == ("speculation" in run.note)
    assert error is None or abs(error) < 0.20


def test_one_node_has_no_network_term():
    estimate = decode_estimate(placed(), rows=4, context=1024)
    assert estimate.efa_min_ms == estimate.efa_max_ms == 0
    assert estimate.min_ms == estimate.max_ms


def test_a_second_node_halves_the_weight_term_and_adds_two_hops_a_layer():
    one = decode_estimate(placed(), rows=1, context=0)
    two = decode_estimate(placed(num_nodes=2), rows=1, context=0)
    assert two.weights_ms == pytest.approx(one.weights_ms / 2, rel=0.1)
    assert two.layers_ms == one.layers_ms
    assert two.efa_min_ms == pytest.approx(80 * 2 * EFA_HOP_MS, rel=0.05)
    assert two.efa_max_ms == pytest.approx(2 * 80 * 2 * EFA_HOP_MS, rel=0.05)


def test_each_term_follows_its_cause():
    base = decode_estimate(placed(), rows=1, context=1000)
    wider = decode_estimate(placed(), rows=8, context=1000)
    longer = decode_estimate(placed(), rows=1, context=3000)
    assert wider.kv_ms == pytest.approx(8 * base.kv_ms)
    assert longer.kv_ms == pytest.approx(3 * base.kv_ms)
    assert wider.weights_ms == base.weights_ms
    assert base.rows_ms == 0 < wider.rows_ms


def test_more_rows_of_a_mixture_read_more_experts_up_to_all():
    shape = msgspec.structs.replace(
        LLAMA3_8B, model_type="mixtral", num_experts=8, experts_per_token=2, expert_size=14336,
        num_moe_layers=32,
    )  # fmt: skip
    placement = placed(shape)
    speed = placement.instance.core_bytes_per_ms
    shared = placement.weights.linear + placement.weights.other
    experts = placement.weights.expert * placement.weights.num_experts
    read = [decode_estimate(placement, rows=n, context=0).weights_ms * speed for n in (1, 2, 64)]
    assert read[0] == pytest.approx(shared + experts * 2 / 8)
    assert read[1] == pytest.approx(shared + experts * (1 - (6 / 8) ** 2))
    assert read[2] == pytest.approx(shared + experts, rel=1e-6)


def test_a_prefill_costs_a_step_and_grows_with_prompts_and_length():
    step = decode_estimate(placed(), rows=1, context=0).max_ms
    short, long = (prefill_ms(placed(), prompts=1, tokens=n) for n in (128, 2048))
    assert step < short < long
    both = prefill_ms(placed(), prompts=2, tokens=2048)
    assert both - step == pytest.approx(2 * (long - step))


def test_a_long_prefill_on_two_nodes_pays_for_its_payload():
    tokens = 8192
    extra = 80 * 2 * tokens * 8192 * 2 / placed().instance.efa_bytes_per_ms
    two = placed(num_nodes=2)
    without = msgspec.structs.replace(two, num_nodes=1)
    gained = prefill_ms(two, prompts=1, tokens=tokens) - prefill_ms(
        without, prompts=1, tokens=tokens
    )
    assert gained == pytest.approx(extra, rel=0.05)
