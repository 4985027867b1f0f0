"""Ray's authentication token, derived from the group's so that neither reveals the other.

Ray reads its settings when it is imported, so this module does not import it.
"""

import hashlib
import hmac
import os


def ray_token(group_token: str) -> str:
    """64 hexadecimal digits; the same on every host of the group."""
    return hmac.new(group_token.encode(), b"rufus-serve ray token v1", hashlib.sha256).hexdigest()


def ray_environment(group_token: str) -> dict[str, str]:
    """Variables that must be set before ray is imported or started."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": ray_token(group_token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default even the patch must agree, which images of different makers hardly do.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
        # Short of memory, Ray would kill our agents, which hold none; the kernel knows better.
        "RAY_memory_monitor_refresh_ms": "0",
        # Followers end by themselves, or wait for another leader if told so.
        "RAY_kill_child_processes_on_worker_exit": "0",
    }


def export_ray_environment(group_token: str) -> None:
    """Set them for this process."""
    os.environ.update(ray_environment(group_token))
