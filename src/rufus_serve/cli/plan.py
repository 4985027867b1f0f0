"""Plan a model on Trainium nodes: does it fit, how many sequences, how fast.

Reads config.json only. Pure arithmetic, calibrated on published runs which are printed beside
the formula's own predictions (--published). With --traffic: how many groups a load needs, by
simulation. Ends with 3 if the model does not fit, or no groups keep the SLO.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rufus_serve.errors import ConfigError, ModelError

_DEFAULT_LEN = 8192
_DEFAULT_PROMPT = 2048
_DEFAULT_SEQS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, nodes and load."""
    from rufus_serve.cli import plan_traffic
    from rufus_serve.plan.hardware import INSTANCES

    names = [instance.name for instance in INSTANCES]
    parser.add_argument("model", metavar="MODEL", type=Path, help="config.json, or its folder")
    parser.add_argument(
        "--instance", choices=names, default="trn1.32xlarge", help="node type [trn1.32xlarge]"
    )
    parser.add_argument(
        "--nodes", type=_positive, metavar="N", help="nodes of one group [the fewest that fit]"
    )
    parser.add_argument(
        "--cores-per-node", type=_positive, metavar="N", help="cores to use per node [all]"
    )
    parser.add_argument(
        "--weights", choices=("bfloat16", "int8", "float32"), default="bfloat16",
        help="number format of the weights on the device [bfloat16]",
    )  # fmt: skip
    parser.add_argument(
        "--max-model-len", type=_positive, metavar="TOKENS",
        help=f"longest prompt plus output [the model's own, at most {_DEFAULT_LEN}]",
    )  # fmt: skip
    parser.add_argument(
        "--max-num-seqs", type=_positive, metavar="N",
        help=f"sequences decoded together [{_DEFAULT_SEQS}; with --traffic several]",
    )  # fmt: skip
    parser.add_argument(
        "--prompt-tokens", type=_positive, metavar="TOKENS",
        help=f"prompt that the time to first token is given for [{_DEFAULT_PROMPT}]",
    )  # fmt: skip
    _add_degrees(parser)
    parser.add_argument(
        "--draft-model", metavar="FOLDER", default="",
        help="count the draft model of fused speculation too",
    )  # fmt: skip
    parser.add_argument("--published", action="store_true", help="compare with published runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    plan_traffic.add_arguments(parser)


def _add_degrees(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cp-degree", type=_positive, metavar="N", default=1,
        help="context parallelism in prefill [1]",
    )  # fmt: skip
    parser.add_argument(
        "--attention-dp-degree", type=_positive, metavar="N", default=1,
        help="data parallelism of attention in decode [1]",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from rufus_serve.cli import plan_traffic
    from rufus_serve.cli.plan_tables import plan_as_json, print_plan
    from rufus_serve.plan.plan import make_plan, smallest_fit

    request = _request(args)
    if args.traffic:
        return plan_traffic.run(args, request)
    plan_traffic.refuse_without_traffic(args)
    plan = make_plan(request)
    if args.nodes is None and not plan.fits:
        plan = smallest_fit(request) or plan
    if args.json:
        print(json.dumps(plan_as_json(plan, published=args.published), indent=2))
    else:
        print_plan(plan, published=args.published)
    return 0 if plan.fits else ModelError.exit_code


def _request(args: argparse.Namespace) -> Any:
    from rufus_serve.model.shape import read_model_shape
    from rufus_serve.plan.hardware import instance_named
    from rufus_serve.plan.request import PlanRequest

    shape = read_model_shape(args.model)
    instance = instance_named(args.instance)
    length = args.max_model_len or min(_DEFAULT_LEN, shape.max_model_len)
    return PlanRequest(
        shape=shape,
        instance=instance,
        num_nodes=args.nodes or 1,
        cores_per_node=args.cores_per_node or instance.num_cores,
        max_model_len=length,
        max_num_seqs=args.max_num_seqs or _DEFAULT_SEQS,
        weights=args.weights,
        prompt_tokens=args.prompt_tokens or min(_DEFAULT_PROMPT, length),
        cp_degree=args.cp_degree,
        attention_dp_degree=args.attention_dp_degree,
        draft=read_model_shape(Path(args.draft_model)) if args.draft_model else None,
        draft_model=args.draft_model,
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"must be a whole number above 0, got {text!r}")
    return int(text)
