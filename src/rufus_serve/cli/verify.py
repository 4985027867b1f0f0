"""Compare greedy tokens and log probabilities of fixed prompts with a reference made once.

Make the reference where the checkpoint fits in memory: `verify MODEL --make FILE` has transformers
compute in float32. Then `verify MODEL --against FILE [SETTING …]` serves the model by the settings
that `serve` takes, and `verify --against FILE --url URL` asks an endpoint that runs. Ends with 17
if more differs than rounding explains.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rufus_serve.cli.endpoint_flags import add_key_argument
from rufus_serve.cli.setting_flags import add_setting_arguments, resolve_arguments
from rufus_serve.client import base_url
from rufus_serve.errors import ConfigError, VerifyFailed

if TYPE_CHECKING:
    from rufus_serve.config.schema import ServeConfig
    from rufus_serve.verify.comparison import Divergence, Limits, VerifyReport
    from rufus_serve.verify.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, whom to ask, what is allowed, and every setting."""
    add = parser.add_argument
    add("--make", type=Path, metavar="FILE", help="make the reference of MODEL")
    add("--against", type=Path, metavar="FILE", help="compare with a reference")
    add("--tokens", type=int, default=64, metavar="N", help="of each prompt, with --make [64]")
    add("--url", default="", help="an endpoint that runs [one that is started for it]")
    add_key_argument(parser, "of --url")
    add("--margin", type=float, metavar="NATS",
        help="by how much less likely than the reference's a token may be [0.5]")  # fmt: skip
    add("--mean-error", type=float, metavar="NATS",
        help="of log probabilities that is still taken for rounding [0.1]")  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    add_setting_arguments(parser)
    parser.usage = (
        f"{parser.prog} MODEL --make FILE\n"
        f"       {parser.prog} [MODEL] --against FILE [--url URL] [SETTING …]"
    )


def run(args: argparse.Namespace) -> int:
    """Make the reference, or print what differs from it."""
    if (args.make is None) == (args.against is None):
        raise ConfigError("give either --make FILE or --against FILE")
    if args.make:
        return _make(args)
    from rufus_serve.verify.comparison import Limits
    from rufus_serve.verify.reference import read_reference

    reference = read_reference(args.against)
    given = {"margin": args.margin, "mean_error": args.mean_error}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    report = _compared(args, reference, limits)
    print(_as_json(report) if args.json else _as_text(report))
    if report.faults:
        raise VerifyFailed("; ".join(report.faults))
    return 0


def _make(args: argparse.Namespace) -> int:
    from rufus_serve.verify.making import make_reference
    from rufus_serve.verify.reference import write_reference

    if args.tokens < 1:
        raise ConfigError(f"--tokens must be at least 1, got {args.tokens}")
    folder = Path(resolve_arguments(args).config.model)
    reference = make_reference(folder, num_tokens=args.tokens, progress=_tell)
    write_reference(args.make, reference)
    print(f"wrote {args.make}")
    return 0


def _tell(done: int, total: int) -> None:
    print(f"prompt {done} of {total}", file=sys.stderr)


def _compared(args: argparse.Namespace, reference: "Reference", limits: "Limits") -> "VerifyReport":
    from rufus_serve.verify.comparison import compare
    from rufus_serve.verify.endpoint import Endpoint
    from rufus_serve.verify.served import served

    if args.url:
        endpoint = Endpoint(url=base_url(args.url), api_key=args.api_key).named()
        return compare(reference, endpoint.greedy, limits=limits, same_checkpoint=None)
    config = resolve_arguments(args).config
    same = _is_of(reference, config)
    with served(config) as url:
        endpoint = Endpoint(url=url).named()
        return compare(reference, endpoint.greedy, limits=limits, same_checkpoint=same)


def _is_of(reference: "Reference", config: "ServeConfig") -> bool:
    from rufus_serve.artifacts.identity import identify_model

    found, known = identify_model(Path(config.model)), reference.model
    # Where only config.json is at hand, artifacts hold the weights.
    return found.config_sha256 == known.config_sha256 and found.weights in ((), known.weights)


def _as_json(report: "VerifyReport") -> str:
    import msgspec

    value = msgspec.to_builtins(report) | {
        "agreement": report.agreement, "faults": report.faults,
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _as_text(report: "VerifyReport") -> str:
    lines = [
        f"{report.num_tokens} tokens against {report.made_by}: {report.agreement:.2%} the same",
        f"log probabilities are off by {report.mean_error:.4f} nats in the mean, "
        f"{report.max_error:.3f} at most",
    ]
    if report.same_checkpoint is False:
        lines.append("note: the reference was made of another checkpoint than what is served")
    if report.worst is not None:
        lines.append(f"first divergence: {_told(report.divergences[0])}")
        lines.append(f"worst divergence: {_told(report.worst)}")
    lines.append("this is not the model" if report.faults else "this is the model")
    return "\n".join(lines)


def _told(one: "Divergence") -> str:
    least = "at least " if one.is_at_least else ""
    return (
        f"prompt {one.prompt}, token {one.position}: {one.found} instead of {one.expected}, "
        f"{least}{one.margin:.4f} nats less likely to the reference"
    )
