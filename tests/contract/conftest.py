import logging

import pytest
from channel_group import group  # noqa: F401 - a fixture of the step channel's suites


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test leaves anything in, or learns anything from, the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_log_level(monkeypatch):
    """The root logger is as it was; a library that vLLM imports sets its level."""
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    logging.getLogger().manager._clear_cache()
