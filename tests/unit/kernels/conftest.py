import os
from pathlib import Path

import pytest

from rufus_serve.kernels import library


def _built() -> list[library.Library]:
    """All that were built, or the one that NAME=FILE in KERNELS_UNDER_TEST says."""
    name, _, path = os.environ.get("KERNELS_UNDER_TEST", "").partition("=")
    if name:
        return [library.open_library(name, Path(path))]
    found = library.supported_names(library.cpu_flags())
    paths = {name: library.built_library(name) for name in found}
    return [library.open_library(name, path) for name, path in paths.items() if path]


LIBRARIES = _built()


@pytest.fixture(params=LIBRARIES or [None], ids=[each.name for each in LIBRARIES] or ["none"])
def kernels(request):
    """Every library that was built and that this CPU runs."""
    if request.param is None:
        pytest.skip("no kernels were built: they need a C++ compiler on x86-64 Linux")
    return request.param
