"""`rufus-serve follower`: offers this host to a leader elsewhere."""

from pathlib import Path

from rufus_serve.channel.keys import read_token
from rufus_serve.cluster.ray_token import export_ray_environment
from rufus_serve.errors import ConfigError


def join(*, leader: str, token_file: Path | None, address: str) -> int:
    """Join the leader's cluster, again whenever it comes back, until told to stop; the exit code.

    Args:
        leader: HOST:PORT of the leader's Ray head.
        token_file: the token shared by all hosts.
        address: own IP address or interface; empty to choose one that reaches the leader.

    Raises:
        ConfigError: there is no token file.
        HandshakeRefused: the leader does not take this host.
    """
    if token_file is None:
        raise ConfigError("a follower on its own host needs --token-file, the leader's token")
    export_ray_environment(read_token(token_file))
    from rufus_serve.cluster.ray_node import RayNode

    return RayNode(leader=leader, token_file=token_file, interface=address).run()
