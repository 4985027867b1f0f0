"""Which errors of a follower end the group: the only table. What is not fatal costs a restart."""

from enum import Enum

from rufus_serve import errors
from rufus_serve.errors import RufusError


class Returns(Enum):
    """When the error would come back on another try."""

    ALWAYS = "always"
    AT_FIRST = "at first"
    """For those who start a server to correct at once; one that has served may recover."""
    PERHAPS = "perhaps"


_RETURNS: dict[type[RufusError], Returns] = {
    errors.ConfigError: Returns.ALWAYS,
    errors.ModelError: Returns.ALWAYS,
    errors.ArtifactError: Returns.ALWAYS,
    errors.ArtifactsUnreachable: Returns.AT_FIRST,
    errors.EndpointError: Returns.AT_FIRST,
    errors.ClusterError: Returns.AT_FIRST,
    errors.StartupTimeout: Returns.AT_FIRST,
    errors.FollowerError: Returns.PERHAPS,
    errors.LeaderLost: Returns.PERHAPS,
    errors.RuntimeStepError: Returns.PERHAPS,
    errors.RufusError: Returns.AT_FIRST,
}
"""By class; a class that is not listed is as the nearest it derives from."""


def is_fatal(kind: type[RufusError], *, first_start: bool) -> bool:
    """Whether a follower's error of this kind ends the group."""
    returns = next(_RETURNS[each] for each in kind.__mro__ if each in _RETURNS)
    return returns is Returns.ALWAYS or (first_start and returns is Returns.AT_FIRST)


def kind_of_exit(code: int) -> type[RufusError]:
    """What a follower process ended of, by its exit code: signals and 0 say nothing lasting."""
    return errors.FollowerError if code <= 0 else errors.class_of(code) or errors.RufusError
