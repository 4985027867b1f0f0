from concurrent.futures import ThreadPoolExecutor

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


def test_of_two_threads_that_announce_an_epoch_one_connects_to_it() -> None:
    gate = EpochGate()
    with ThreadPoolExecutor(8) as pool:
        for epoch in range(1, 200):
            news = pool.map(gate.announce, [epoch] * 8)
            assert sum(news) == 1


def test_an_epoch_that_is_over_or_overtaken_is_no_news() -> None:
    gate = EpochGate()
    gate.shut(3)
    assert not gate.announce(3)
    assert gate.announce(5)
    assert not gate.announce(4)
    assert not gate.open(4)


def test_the_end_of_an_epoch_is_news_once_and_only_if_it_was_announced() -> None:
    gate = EpochGate()
    assert not gate.shut(1)
    gate.announce(2)
    assert gate.shut(2)
    assert not gate.shut(2)
