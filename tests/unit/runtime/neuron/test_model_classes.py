"""Model wrappers get other models for a while, also if that ends badly."""

from types import SimpleNamespace

import pytest

from rufus_serve.runtime.neuron.model_classes import built_by


def test_each_wrapper_gets_what_is_built_of_its_own_class_for_a_while():
    wrappers = [SimpleNamespace(model_cls=str), SimpleNamespace(model_cls=int)]
    with built_by(lambda model_class, config: ("built", model_class(config)), wrappers):
        assert [wrapper.model_cls("7") for wrapper in wrappers] == [("built", "7"), ("built", 7)]
    assert [wrapper.model_cls for wrapper in wrappers] == [str, int]


def test_classes_come_back_after_an_error():
    wrapper = SimpleNamespace(model_cls=str)
    with pytest.raises(ZeroDivisionError), built_by(lambda *_: None, [wrapper]):
        raise ZeroDivisionError
    assert wrapper.model_cls is str
