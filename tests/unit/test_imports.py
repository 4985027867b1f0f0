import gc

import pytest

from rufus_serve.imports import imports_that_stay


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_made_inside_is_never_looked_through():
    before = gc.get_freeze_count()
    with imports_that_stay():
        assert not gc.isenabled()
        made = [[] for _ in range(100)]

    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with imports_that_stay():
        pass

    assert not gc.isenabled()


def test_a_failed_import_leaves_the_collector_on():
    with pytest.raises(ImportError), imports_that_stay():
        raise ImportError

    assert gc.isenabled()
