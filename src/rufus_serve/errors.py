"""The error tree, and the exit code that each branch ends a process with.

    RufusError                      1
    ├── ConfigError                 2   a flag, file or environment variable is wrong
    ├── ModelError                  3   the checkpoint cannot be served as asked
    ├── EndpointError               4   an address or port cannot be used
    ├── ClusterError                5   nodes cannot be found, placed or joined
    │   └── HandshakeRefused        6   another version, configuration or key
    ├── FollowerError               7   a follower failed; the message is its first error
    │   ├── StartupTimeout          8   a start-up phase passed its deadline
    │   └── RestartBudgetSpent      9   the group failed for good
    ├── LeaderError                10   the vLLM process failed
    ├── LeaderLost                 11   a follower lost its leader (on_leader_loss: exit)
    ├── ArtifactError              12   compiled artifacts are absent, stale or damaged
    │   └── ArtifactsUnreachable   15   their storage does not answer; another try may succeed
    ├── RuntimeStepError           13   a step was refused or failed in the runtime
    │   └── CollectiveAborted      13   a peer of the collective is gone
    ├── DoctorWarning              14   `doctor --strict` found warnings, and no error
    ├── BatchError                 16   lines of a batch failed, or their files cannot be used
    └── VerifyFailed               17   `verify` found another model than the reference's

Messages say what happened, with the values, and what to do next.
"""


class RufusError(Exception):
    """Root of all errors raised on purpose; `exit_code` ends the process that dies of it."""

    exit_code = 1


class ConfigError(RufusError):
    """A setting is unknown, malformed or impossible."""

    exit_code = 2


class ModelError(RufusError):
    """The checkpoint is missing, damaged, or of a kind that cannot be served."""

    exit_code = 3


class EndpointError(RufusError):
    """An address or port cannot be used."""

    exit_code = 4


class ClusterError(RufusError):
    """Nodes cannot be found, placed or joined."""

    exit_code = 5


class HandshakeRefused(ClusterError):
    """A peer runs another version or configuration, or holds another key."""

    exit_code = 6


class FollowerError(RufusError):
    """A follower failed; the message carries its own first error."""

    exit_code = 7


class StartupTimeout(FollowerError):
    """A phase of start-up passed its deadline."""

    exit_code = 8


class RestartBudgetSpent(FollowerError):
    """The group was restarted as often as allowed and failed again."""

    exit_code = 9


class LeaderError(RufusError):
    """The vLLM process ended on its own."""

    exit_code = 10


class LeaderLost(RufusError):
    """A follower lost its leader and was told to exit then."""

    exit_code = 11


class ArtifactError(RufusError):
    """Compiled artifacts are absent, stale or damaged."""

    exit_code = 12


class ArtifactsUnreachable(ArtifactError):
    """The storage of artifacts does not answer; another try may succeed."""

    exit_code = 15


class RuntimeStepError(RufusError):
    """The runtime refused or failed a step."""

    exit_code = 13


class CollectiveAborted(RuntimeStepError):
    """A collective was given up because a peer is gone or `abort` was called."""


class DoctorWarning(RufusError):
    """`doctor --strict` found warnings; errors it finds have the code `serve` would end with."""

    exit_code = 14


class BatchError(RufusError):
    """Lines of a batch failed, or the files of its answers cannot be used."""

    exit_code = 16


class VerifyFailed(RufusError):
    """`verify` found answers that rounding does not explain."""

    exit_code = 17


def class_of(code: int) -> type[RufusError] | None:
    """The class whose errors end a process with exit code `code`; None if it is not one of ours."""
    found: list[type[RufusError]] = [RufusError]
    for kind in found:
        if kind.exit_code == code:
            return kind
        found += kind.__subclasses__()
    return None


def of(code: int, text: str, *, otherwise: type[RufusError] = RufusError) -> RufusError:
    """The error that another process told of by its exit code, or one of class `otherwise`."""
    return (class_of(code) or otherwise)(text)
