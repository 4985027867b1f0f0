"""Importable stand-ins for the wheels that NxD Inference needs and only a Neuron host has.

NxD Inference's CPU mode runs plain torch, but its modules import the closed compiler, kernel and
device packages by name. Importing this module makes those names importable. What they contain is
`Missing`: enough to get through import time (decorators, base classes, annotations, constants),
an error as soon as torch is given one. The few functions that CPU mode really calls are in
`REAL`. Loaded at interpreter start by a .pth file, so it must import nothing heavy.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType

PACKAGES = {
    "boto3", "botocore", "libneuronxla", "neuronxcc", "nki", "nkilib", "tenacity",
    "torch_neuronx", "torch_xla",
}  # fmt: skip


class MissingBase:
    """What a class inherits when it names a `Missing` base."""


class Missing:
    """A name of a package that is not here."""

    def __init__(self, path):
        self.__dict__["path"] = path

    def __repr__(self):
        return f"<missing {self.path}>"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.setdefault(name, Missing(f"{self.path}.{name}"))

    def __call__(self, *args, **kwargs):
        target = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(target, FunctionType):
            target.func_name = target.__name__  # compiled kernels have it, and NxD reads it
            return target
        return target if isinstance(target, type) else Missing(f"{self.path}(...)")

    def __mro_entries__(self, bases):
        return (MissingBase,)

    def __getitem__(self, key):
        return Missing(f"{self.path}[{key!r}]")

    def __bool__(self):
        return False

    def __iter__(self):
        return iter(())

    def __eq__(self, other):
        return isinstance(other, Missing) and other.path == self.path

    def __hash__(self):
        return hash(self.path)

    def _either(self, other):
        return self

    __or__ = __ror__ = __add__ = __mul__ = __rmul__ = __floordiv__ = __sub__ = _either


class MissingModule(ModuleType):
    """A module of a package that is not here."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__}.{name}"
        return sys.modules.get(path) or Missing(path)


def _rank(*_args):
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def _world_size(*_args):
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def _cpu(*_args):
    import torch

    return torch.device("cpu")


def _nothing(*_args, **_kwargs):
    return None


def _trn1(*_args, **_kwargs):
    return "trn1"


def _handing_on(_operation):
    """In place of an operation that only marks a layer's border for the compiler."""
    return lambda *values: values[0] if len(values) == 1 else values


class TopK:
    """In place of the operation that one rank finds its own best with."""

    @staticmethod
    def apply(tensor, k, dim):
        return tensor.topk(k, dim=dim)


class Argmax:
    """In place of the operation that one rank finds its best with."""

    @staticmethod
    def apply(tensor, dim, keepdim):
        return tensor.argmax(dim, keepdim)


REAL = {
    "torch_xla": {"__version__": "2.9.0"},
    "torch_neuronx": {"__version__": "2.9.0"},
    "torch_xla.core.xla_model": {
        "xla_device": _cpu,
        "mark_step": _nothing,
        "rendezvous": _nothing,
        "get_ordinal": _rank,
        "xrt_world_size": _world_size,
        "is_master_ordinal": lambda *_args: _rank() == 0,
        "REDUCE_SUM": "sum",
        "REDUCE_MAX": "max",
    },
    "torch_xla.runtime": {"global_ordinal": _rank, "world_size": _world_size},
    "torch_neuronx.xla_impl.ops": {"Argmax": Argmax, "TopK": TopK},
    "torch_neuronx.xla_impl.base": {"xla_hlo_call": _handing_on},
    "torch_neuronx.utils": {"get_platform_target": _trn1},
    "torch_neuronx.utils.utils": {"get_platform_target": _trn1},
}


class StandIns(MetaPathFinder, Loader):
    """Finds every module of `PACKAGES`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in PACKAGES:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return MissingModule(spec.name)

    def exec_module(self, module):
        vars(module).update(REAL.get(module.__name__, {}))
        if module.__name__ == "torch_neuronx":
            import torch

            # NxD's annotations name C++ classes that torch-neuronx registers there.
            torch.classes.neuron = Missing("torch.classes.neuron")


sys.meta_path.insert(0, StandIns())
