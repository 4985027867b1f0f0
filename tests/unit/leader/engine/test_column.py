import numpy as np

from rufus_serve.leader.engine.column import Column


def test_what_is_added_stands_behind_what_was_there():
    column = Column(np.array([3, 1], np.int32))
    for value in range(100):
        column.extend(1, value)
        column.extend(2)
    assert column.values.tolist() == [3, 1] + [each for v in range(100) for each in (v, 0, 0)]
    assert column.values.dtype == np.int32


def test_several_come_at_once_and_views_keep_their_length():
    column = Column(np.empty(0, np.int32))
    column.extend(3, [5, 6, 7])
    before = column.values
    column.extend(1)
    assert before.tolist() == [5, 6, 7]
    assert column.values.tolist() == [5, 6, 7, 0]
