"""Runs only where NxD Inference's sources are importable: `make test-nxdi SOURCES=...`."""

from importlib.util import find_spec

import numpy as np
import pytest

HAS_NXDI = find_spec("neuronx_distributed_inference") is not None


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="NxD Inference is not importable: make test-nxdi SOURCES=...")
    for item in items:
        if "nxdi" in item.path.parts:
            item.add_marker(pytest.mark.nxdi)
            if not HAS_NXDI and not item.path.stem.startswith("test_nxdi_server"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny random Llama with 9 query and 3 KV heads."""
    from nxdi_group import write_llama

    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def reference(model):
    from nxdi_group import Reference

    return Reference(model)


@pytest.fixture(scope="module")
def start_group():
    """Starts groups that end with the module."""
    from nxdi_group import Group

    groups = []

    def start(settings, **options):
        groups.append(Group(settings, **options))
        return groups[-1].start()

    yield start
    for group in groups:
        group.close()


@pytest.fixture
def prompt():
    """Makes random prompts of a given length."""
    random = np.random.default_rng(7)
    return lambda length: random.integers(3, 504, length).tolist()
