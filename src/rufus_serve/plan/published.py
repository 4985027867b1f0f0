"""Published latencies, and what the formulas of `plan.latency` say of the same runs.

Sources, all of the Neuron documentation: about-neuron/benchmarks/{trn1,inf2}/*decoder.csv
(Transformers NeuronX; SDK 2.18 for Trn1) and
libraries/nxd-inference/tutorials/llama*_comparison.csv (NxD Inference on Trn2).
"""

import msgspec

from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.hardware import instance_named
from rufus_serve.plan.latency import Placement, decode_estimate, prefill_ms
from rufus_serve.plan.memory import WeightFormat, core_weights, kv_bytes_per_token
from rufus_serve.plan.tensor_parallel import padded_shares

LLAMA3_8B = ModelShape(
    model_type="llama", num_layers=32, hidden_size=4096, num_q_heads=32, num_kv_heads=8,
    head_size=128, intermediate_size=14336, vocab_size=128256, max_model_len=8192,
)  # fmt: skip
LLAMA3_70B = ModelShape(
    model_type="llama", num_layers=80, hidden_size=8192, num_q_heads=64, num_kv_heads=8,
    head_size=128, intermediate_size=28672, vocab_size=128256, max_model_len=8192,
)  # fmt: skip
LLAMA31_405B = ModelShape(
    model_type="llama", num_layers=126, hidden_size=16384, num_q_heads=128, num_kv_heads=8,
    head_size=128, intermediate_size=53248, vocab_size=128256, max_model_len=131072,
)  # fmt: skip
LLAMA2_13B = ModelShape(
    model_type="llama", num_layers=40, hidden_size=5120, num_q_heads=40, num_kv_heads=40,
    head_size=128, intermediate_size=13824, vocab_size=32000, max_model_len=4096,
)  # fmt: skip


class PublishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One published measurement; latencies are medians in milliseconds."""

    model: str
    shape: ModelShape
    instance: str
    tp: int
    weights: WeightFormat
    rows: int
    tokens_in: int
    """0: not published; then only the decode is predicted, with an empty context."""
    tokens_out: int
    ttft_ms: float | None
    tpot_ms: float
    fitted: bool = False
    """Whether the constants were fitted to its decode."""
    note: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A published run beside the model's prediction; errors are relative to the measurement."""

    run: PublishedRun
    tpot_ms: float | None
    tpot_error: float | None
    ttft_ms: float | None
    ttft_error: float | None


def compare(run: PublishedRun) -> Comparison:
    """Predict `run`, at the context in the middle of its output."""
    if "speculation" in run.note:
        return Comparison(run=run, tpot_ms=None, tpot_error=None, ttft_ms=None, ttft_error=None)
    placement = _placement(run)
    context = run.tokens_in + run.tokens_out // 2
    tpot = decode_estimate(placement, rows=run.rows, context=context).max_ms
    ttft, ttft_error = None, None
    if run.tokens_in and run.ttft_ms:
        ttft = prefill_ms(placement, prompts=run.rows, tokens=run.tokens_in)
        ttft_error = ttft / run.ttft_ms - 1
    return Comparison(
        run=run,
        tpot_ms=tpot,
        tpot_error=tpot / run.tpot_ms - 1,
        ttft_ms=ttft,
        ttft_error=ttft_error,
    )


def _placement(run: PublishedRun) -> Placement:
    tp = padded_shares(run.shape, run.tp)
    return Placement(
        instance=instance_named(run.instance),
        shape=run.shape,
        weights=core_weights(run.shape, tp, run.weights),
        kv_per_token=kv_bytes_per_token(run.shape, tp, run.weights),
        num_nodes=1,
        degree=run.tp,
    )


def _trn1(
    model: str, rows: int, tokens: tuple[int, int], ttft_ms: float, tpot_ms: float,
    *, fitted: bool = True, note: str = "",
) -> PublishedRun:  # fmt: skip
    shape, weights = _TRN1_MODELS[model]
    return PublishedRun(
        model=model, shape=shape, instance="trn1.32xlarge", tp=32, weights=weights, rows=rows,
        tokens_in=tokens[0], tokens_out=tokens[1], ttft_ms=ttft_ms, tpot_ms=tpot_ms,
        fitted=fitted, note=note,
    )  # fmt: skip


_TRN1_MODELS: dict[str, tuple[ModelShape, WeightFormat]] = {
    "Llama-3-70B": (LLAMA3_70B, "bfloat16"),
    "Llama-3-8B": (LLAMA3_8B, "int8"),
    "Llama-2-13B": (LLAMA2_13B, "bfloat16"),
}


def _trn2(model: str, shape: ModelShape, ttft: float, tpot: float, note: str = "") -> PublishedRun:
    return PublishedRun(
        model=model, shape=shape, instance="trn2.48xlarge", tp=64, weights="bfloat16", rows=1,
        tokens_in=0, tokens_out=0, ttft_ms=ttft, tpot_ms=tpot, note=note,
    )  # fmt: skip


PUBLISHED = (
    _trn1("Llama-3-70B", 1, (128, 128), 52.5, 26.5, fitted=False, note="P50 above its own P99"),
    _trn1("Llama-3-70B", 1, (128, 1024), 53.2, 24.5),
    _trn1("Llama-3-70B", 1, (2048, 2048), 547, 26.2),
    _trn1("Llama-3-70B", 4, (128, 1024), 129.9, 28.4),
    _trn1("Llama-3-70B", 4, (2048, 2048), 1661, 32.3),
    _trn1("Llama-3-8B", 1, (128, 3968), 14.8, 5.86),
    _trn1("Llama-3-8B", 8, (128, 3968), 49.1, 7.65),
    _trn1("Llama-3-8B", 8, (4096, 4096), 1266, 10.0),
    _trn1("Llama-2-13B", 1, (4096, 4096), 864, 9.84),
    _trn1("Llama-2-13B", 8, (4096, 4096), 6669, 19.9),
    PublishedRun(
        model="Llama-3-70B", shape=LLAMA3_70B, instance="inf2.48xlarge", tp=24,
        weights="bfloat16", rows=1, tokens_in=0, tokens_out=0, ttft_ms=None, tpot_ms=33.5,
        note="middle of the published 32 to 35 ms",
    ),
    _trn2("Llama-3.3-70B", LLAMA3_70B, 814, 19.6),
    _trn2("Llama-3.3-70B", LLAMA3_70B, 870, 5.3, "fused speculation, not modelled"),
    _trn2("Llama-3.1-405B", LLAMA31_405B, 2442, 37.9),
    _trn2("Llama-3.1-405B", LLAMA31_405B, 2255, 8.27, "fused speculation, not modelled"),
)  # fmt: skip
