"""vLLM's entry point into this package."""

import os

from rufus_serve.protocol.specs import SPEC_VARIABLE


def register() -> str | None:
    """Path of our platform class in a leader process; None in any other process.

    Batch state follows vLLM's model runner V1, whose scheduler output tells new from resumed
    requests; V2's does not.
    """
    if SPEC_VARIABLE not in os.environ:
        return None
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    return "rufus_serve.leader.platform.FollowerPlatform"
