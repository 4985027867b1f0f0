"""vLLM with our platform, as a leader process has it: import this before anything of vLLM's.

vLLM asks once a process which platform it runs on, and fixes at import what follows from it.
"""

import pytest

from rufus_serve.protocol.specs import SPEC_VARIABLE

with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("VLLM_PLUGINS", "rufus_serve")
    _patch.setenv(SPEC_VARIABLE, "unread")
    from vllm.platforms import current_platform

    assert type(current_platform).__name__ == "FollowerPlatform"
