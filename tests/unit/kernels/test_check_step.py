import pytest
import torch
from tests.unit.kernels.layers import RandomStep, Sequence, Sizes


def fault(kernels, change):
    step = RandomStep(Sizes(), [Sequence(20, 3), Sequence(40, 1)])
    change(step)
    model, cache, arrays = step.structs(16)
    return kernels.functions.check_step(model, cache, arrays)


def test_takes_what_lies_within_the_cache(kernels):
    assert fault(kernels, lambda step: None) == 0


@pytest.mark.parametrize(
    ("name", "index", "value", "expected"),
    [
        ("starts", 0, 1, 1),
        ("starts", 1, 0, 1),
        ("starts", 1, 4, 1),
        ("starts", 2, 5, 1),
        ("positions", 3, 41, 2),
        ("positions", 0, -1, 2),
        ("slots", 1, 7 * 16, 3),
        ("slots", 1, -1, 3),
        ("blocks", (1, 2), 7, 4),
        ("blocks", (0, 0), -1, 4),
    ],
)
def test_refuses_what_lies_outside(kernels, name, index, value, expected):
    def change(step):
        assert step.cache.shape[1] == 7 * 16
        getattr(step, name)[index] = value

    assert fault(kernels, change) == expected


def test_refuses_a_position_behind_the_rows_blocks(kernels):
    def change(step):
        step.num_positions = 100
        step.positions[3] = 3 * 16

    assert fault(kernels, change) == 2


def test_refuses_a_step_of_nothing(kernels):
    def change(step):
        step.sequences = []
        step.positions = torch.empty(0, dtype=torch.int64)

    assert fault(kernels, change) == 1
