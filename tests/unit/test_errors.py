import re

import pytest

from rufus_serve import errors


def every_class(root: type[errors.RufusError]) -> list[type[errors.RufusError]]:
    return [root, *(each for kind in root.__subclasses__() for each in every_class(kind))]


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = dict(re.findall(r"(\w+) +(\d+)(?: |\n)", errors.__doc__))
    ours = [kind for kind in every_class(errors.RufusError) if kind.__module__ == errors.__name__]
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in ours}


@pytest.mark.parametrize("kind", every_class(errors.RufusError))
def test_an_exit_code_names_the_class_or_the_one_it_refines(kind):
    found = errors.class_of(kind.exit_code)
    assert found is not None
    assert issubclass(kind, found)


def test_an_error_told_by_its_code_ends_this_process_with_the_same_code():
    error = errors.of(3, "no such file")
    assert (type(error), str(error), error.exit_code) == (errors.ModelError, "no such file", 3)


def test_a_code_that_is_none_of_ours_becomes_what_the_caller_says():
    assert errors.class_of(99) is None
    assert type(errors.of(99, "x", otherwise=errors.LeaderError)) is errors.LeaderError
