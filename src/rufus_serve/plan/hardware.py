"""The instance types a plan can be made for, and what each can hold and move.

Numbers are from the Neuron SDK documentation, about-neuron/arch/neuron-hardware/
{trn1-arch,trainium,inf2-arch,trn2-arch,trainium2}.rst. Where its pages alternate between GB/s
and GiB/s for memory bandwidth, the smaller one is taken: 820 GB/s per first- and
second-generation chip. NeuronLink is per chip, all else per instance.
"""

import msgspec

from rufus_serve.errors import ConfigError
from rufus_serve.units import GIB


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance type."""

    name: str
    num_chips: int
    num_cores: int
    """Cores as the runtime counts them: logical ones (LNC=2) on Trainium 2."""
    hbm_gib: int
    hbm_gb_per_s: float
    bf16_tflops: float
    neuronlink_gb_per_s: float
    efa_gbit_per_s: float
    """0: nodes of this type cannot form a group."""
    num_vcpus: int
    host_gib: int

    @property
    def family(self) -> str:
        """trn1, trn1n, inf2, trn2."""
        return self.name.partition(".")[0]

    @property
    def core_hbm_bytes(self) -> int:
        """Device memory of one core."""
        return self.hbm_gib * GIB // self.num_cores

    @property
    def core_bytes_per_ms(self) -> float:
        """Memory bandwidth of one core."""
        return self.hbm_gb_per_s * 1e6 / self.num_cores

    @property
    def core_flops_per_ms(self) -> float:
        """Dense bfloat16 operations of one core."""
        return self.bf16_tflops * 1e9 / self.num_cores

    @property
    def efa_bytes_per_ms(self) -> float:
        """Network bandwidth of one node."""
        return self.efa_gbit_per_s * 1e6 / 8


INSTANCES = (
    Instance(
        name="trn1.2xlarge", num_chips=1, num_cores=2, hbm_gib=32, hbm_gb_per_s=820,
        bf16_tflops=190, neuronlink_gb_per_s=0, efa_gbit_per_s=0, num_vcpus=8, host_gib=32,
    ),
    Instance(
        name="trn1.32xlarge", num_chips=16, num_cores=32, hbm_gib=512, hbm_gb_per_s=13_120,
        bf16_tflops=3_040, neuronlink_gb_per_s=384, efa_gbit_per_s=800, num_vcpus=128,
        host_gib=512,
    ),
    Instance(
        name="trn1n.32xlarge", num_chips=16, num_cores=32, hbm_gib=512, hbm_gb_per_s=13_120,
        bf16_tflops=3_040, neuronlink_gb_per_s=768, efa_gbit_per_s=1_600, num_vcpus=128,
        host_gib=512,
    ),
    Instance(
        name="inf2.48xlarge", num_chips=12, num_cores=24, hbm_gib=384, hbm_gb_per_s=9_840,
        bf16_tflops=2_280, neuronlink_gb_per_s=192, efa_gbit_per_s=0, num_vcpus=192,
        host_gib=768,
    ),
    Instance(
        name="trn2.48xlarge", num_chips=16, num_cores=64, hbm_gib=1_536, hbm_gb_per_s=46_400,
        bf16_tflops=10_700, neuronlink_gb_per_s=1_024, efa_gbit_per_s=3_200, num_vcpus=192,
        host_gib=2_048,
    ),
)  # fmt: skip


def instance_named(name: str) -> Instance:
    """The instance type called `name`.

    Raises:
        ConfigError: it is not in the table.
    """
    for instance in INSTANCES:
        if instance.name == name:
            return instance
    known = ", ".join(instance.name for instance in INSTANCES)
    raise ConfigError(f"instance type {name!r} is not known; known are {known}")
