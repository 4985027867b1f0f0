"""Ray's authentication token, derived from the group's so that neither reveals the other.

Ray reads its settings when it is imported, so this module does not import it.
"""

import hashlib
import hmac


def ray_token(group_token: str) -> str:
    """64 hexadecimal digits; the same on every host of the group."""
    return hmac.new(group_token.encode(), b"rufus-serve ray token v1", hashlib.sha256).hexdigest()


def ray_environment(group_token: str, *, loopback: bool = False) -> dict[str, str]:
    """Variables that must be set before ray is imported or started.

    With `loopback` it listens on 127.0.0.1 alone; told of that address only, Ray would take
    another one of this host in its place.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if loopback else "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token(group_token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default even the patch must agree, which images of different makers hardly do.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        # Short of memory, Ray would kill our agents, which hold none; the kernel knows better.
        "RAY_memory_monitor_refresh_ms": "0",
        # Followers outlive their agent.
        "RAY_kill_child_processes_on_worker_exit": "0",
        "RAY_worker_niceness": "0",
        # A node that is gone is known as gone after 3 s, not after 20: its follower's place is
        # needed elsewhere.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "RAY_health_check_failure_threshold": "3",
    }
