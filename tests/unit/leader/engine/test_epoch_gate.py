from rufus_serve.leader.engine.epoch_gate import EpochGate


def test_a_new_gate_is_shut() -> None:
    gate = EpochGate()
    assert gate.epoch is None
    assert gate.wait(0.0) is None


def test_an_opened_epoch_is_in_force_until_it_is_shut() -> None:
    gate = EpochGate()
    assert gate.open(1)
    assert gate.wait(0.0) == gate.epoch == 1
    assert gate.shut(1)
    assert gate.epoch is None


def test_an_epoch_once_shut_never_opens_again() -> None:
    gate = EpochGate()
    gate.shut(4)
    assert not gate.open(4)
    assert not gate.open(3)
    assert gate.open(5)


def test_the_end_of_an_older_epoch_leaves_the_newer_one_open() -> None:
    gate = EpochGate()
    gate.open(2)
    assert not gate.shut(1)
    assert gate.epoch == 2
