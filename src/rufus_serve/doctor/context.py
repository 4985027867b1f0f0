"""`HostContext`: what the checks of one host need to know beside the host itself."""

from functools import cached_property
from pathlib import Path

import msgspec

from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.system import System
from rufus_serve.errors import ModelError
from rufus_serve.model.shape import ModelShape, read_model_shape
from rufus_serve.model.weight_files import weights_bytes


class HostPart(msgspec.Struct, frozen=True, kw_only=True):
    """The part that a host plays."""

    is_leader: bool = True
    """It will run `rufus-serve serve`."""
    spread: bool = False
    """Followers join from several hosts; else all run on this one."""
    followers: int = 1
    """Followers that this host holds."""
    address: str = "127.0.0.1"
    """By which other hosts reach it."""
    ray_is_up: bool = False
    """Ray runs here already: a server's, or the doctor's own."""
    served_by: int = 0
    """Process id of the supervisor of the group that runs already; 0 if none does."""


class HostContext:
    """A host, the settings, and its part in them."""

    def __init__(
        self, system: System, config: ServeConfig, placement: HostPart, *, quick: bool = False
    ) -> None:
        self.system = system
        self.config = config
        self.placement = placement
        self.quick = quick
        """Compare sizes of artifact files, not their checksums."""

    @property
    def on_device(self) -> bool:
        """Whether followers on this host drive NeuronCores."""
        return not self.not_on_device

    @property
    def not_on_device(self) -> str:
        """Why checks of devices do not apply; empty if they do."""
        if self.config.runtime == "cpu":
            return "runtime is cpu"
        if self.config.neuron.mode != "device":
            return f"neuron.mode is {self.config.neuron.mode}"
        return "" if self.placement.followers else "no follower runs on this host"

    @cached_property
    def shape(self) -> ModelShape | None:
        """The model's sizes; None if its config.json is no good, which check `model` reports."""
        try:
            return read_model_shape(Path(self.config.model))
        except ModelError:
            return None

    @cached_property
    def weights_bytes(self) -> int:
        """Size of the model's weight files; 0 if they are no good, which check `model` reports."""
        try:
            return weights_bytes(Path(self.config.model))
        except ModelError:
            return 0

    @cached_property
    def instance_type(self) -> str:
        """EC2's name of this host, such as trn1.32xlarge; empty elsewhere.

        Nitro instances have it as their product name.
        """
        name = self.system.read("/sys/devices/virtual/dmi/id/product_name") or ""
        family, _, size = name.partition(".")
        return name if family and size.endswith(("large", "metal")) else ""
