"""What NxD Inference builds its models with, exchanged for a while."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def built_by(build: Callable[[Any, Any], Any], wrappers: Sequence[Any]) -> Iterator[None]:
    """Have each of the model `wrappers` get `build(its class, config)` for its model."""
    classes = [wrapper.model_cls for wrapper in wrappers]
    for wrapper, model_class in zip(wrappers, classes, strict=True):
        wrapper.model_cls = functools.partial(build, model_class)
    try:
        yield
    finally:
        for wrapper, model_class in zip(wrappers, classes, strict=True):
            wrapper.model_cls = model_class
