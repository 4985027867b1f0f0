"""`Topology`: which cores of which node are which tensor-parallel ranks."""

from dataclasses import dataclass

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError


@dataclass(frozen=True)
class Topology:
    """One tensor-parallel group over all nodes, seen from one of them.

    On a device a follower drives all ranks of its node; in mode nxdi-cpu it is one rank, and
    `nodes` counts ranks.
    """

    num_nodes: int
    cores_per_node: int
    node_rank: int
    followers_on_host: int = 1
    group: int = 0
    """Which of the groups behind one endpoint: several may share a host."""

    @classmethod
    def of(
        cls, config: ServeConfig, node_rank: int, followers_on_host: int, *, group: int = 0
    ) -> "Topology":
        """The topology of `config`, from the node of `node_rank`.

        Raises:
            ConfigError: mode nxdi-cpu is asked for several cores per node.
        """
        cores = config.neuron.cores_per_node
        if config.neuron.mode == "nxdi-cpu" and cores != 1:
            raise ConfigError(
                f"neuron.cores_per_node {cores} with neuron.mode nxdi-cpu: NxD Inference's CPU "
                f"mode is one process per rank; set cores_per_node to 1 and nodes to "
                f"{config.nodes * cores}"
            )
        return cls(config.nodes, cores, node_rank, followers_on_host, group)

    @property
    def tp_degree(self) -> int:
        """Ranks of the whole group."""
        return self.num_nodes * self.cores_per_node

    @property
    def start_rank_id(self) -> int:
        """First rank of this node."""
        return self.node_rank * self.cores_per_node

    @property
    def first_core(self) -> int:
        """First NeuronCore of this follower on its host; followers of a host are neighbours."""
        place = self.group * self.num_nodes + self.node_rank
        return place % self.followers_on_host * self.cores_per_node

    @property
    def spans_hosts(self) -> bool:
        """True if collectives leave this host."""
        return self.num_nodes > self.followers_on_host
