"""The checkpoint: can its files be read, are they whole, and do they belong together?"""

from collections.abc import Iterator
from pathlib import Path

from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import ModelError
from rufus_serve.model.folder import check_folder, check_tokenizer
from rufus_serve.model.shape import ModelShape, read_model_shape
from rufus_serve.model.weight_files import INDEX, read_header, tensor_files
from rufus_serve.units import gib

_CODE = ModelError.exit_code


def model(context: HostContext) -> Iterator[Finding]:
    """config.json, weights and tokenizer."""
    say = Findings("model")
    folder = Path(context.config.model)
    fix = f"huggingface-cli download REPOSITORY --local-dir {folder}"
    why = "leader and followers read the checkpoint on their own hosts, at this path"
    try:
        check_folder(folder)
        shape = read_model_shape(folder)
        _refuse(context, shape, folder)
        size = _check_weights(folder)
        if context.placement.is_leader:
            check_tokenizer(folder)
    except ModelError as error:
        yield say.error(str(error), why=why, fix=fix, code=_CODE)
        return
    params = f"{shape.num_params / 1e9:.2f} B parameters"
    yield say.ok(f"{folder}: {shape.model_type}, {params}, {gib(size)} of weights, all readable")


def _refuse(context: HostContext, shape: ModelShape, folder: Path) -> None:
    if shape.quantization:
        raise ModelError(
            f"{folder}: weights quantized with {shape.quantization!r} are not supported; "
            "use the unquantized checkpoint"
        )
    if shape.num_experts and context.config.runtime == "cpu":
        raise ModelError(f"{folder}: model type {shape.model_type!r} needs runtime neuron")


def _check_weights(folder: Path) -> int:
    """Bytes of all weight files, each opened and found whole; raises ModelError."""
    path_of = tensor_files(folder)
    total = 0
    for path in sorted(set(path_of.values())):
        wanted = {name for name, file in path_of.items() if file == path}
        missing = wanted - read_header(path).keys()
        if missing:
            raise ModelError(f"{path}: lacks tensor {min(missing)}, which {INDEX} says it has")
        total += path.stat().st_size
    return total
