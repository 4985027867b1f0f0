import numpy as np
import pytest

from rufus_serve.leader.engine.dice import any_seed, uniform


def test_a_number_is_a_function_of_seed_and_position():
    assert uniform(5, 3) == uniform(5, 3)
    numbers = {uniform(seed, position) for seed in range(-5, 5) for position in range(100)}
    assert len(numbers) == 1000
    assert all(0.0 <= number < 1.0 for number in numbers)


def test_the_numbers_of_one_seed_are_spread_evenly():
    numbers = np.array([uniform(0, position) for position in range(20_000)])
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx(np.full(10, 2000), rel=0.1)
    # Neighbours know nothing of each other.
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_seeds_for_requests_without_are_never_the_same():
    assert len({any_seed() for _ in range(1000)}) == 1000
