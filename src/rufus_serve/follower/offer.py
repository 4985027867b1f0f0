"""`rufus-serve follower`: offers this host to a leader elsewhere."""

from pathlib import Path


def join(*, leader: str, token_file: Path | None, address: str) -> int:
    """Join the leader's cluster and wait until it ends; the exit code.

    Args:
        leader: HOST:PORT of the leader's Ray head.
        token_file: the token shared by all hosts.
        address: own IP address; empty to choose one that reaches the leader.
    """
    from rufus_serve.cluster.ray_node import run_node

    return run_node(leader=leader, token_file=token_file, address=address)
