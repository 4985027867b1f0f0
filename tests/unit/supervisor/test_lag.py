from rufus_serve.supervisor.lag import LagWatch


def warnings_of(watch: LagWatch, report: tuple[float, ...], *, times: int) -> list[str]:
    return [text for _ in range(times) for text in watch.take(report, {1: "host-b"})]


def test_even_followers_are_never_warned_about() -> None:
    assert warnings_of(LagWatch(), (0.020, 0.021, 0.019), times=100) == []


def test_a_slow_follower_is_named_once() -> None:
    found = warnings_of(LagWatch(), (0.020, 0.050, 0.020), times=100)
    assert len(found) == 1
    assert "follower 1 on host-b is slow: 50.0 ms" in found[0]


def test_a_follower_that_recovered_is_named_again_when_it_lags_again() -> None:
    watch = LagWatch()
    slow, even = (0.020, 0.080), (0.020, 0.020)
    assert len(warnings_of(watch, slow, times=50)) == 1
    assert warnings_of(watch, even, times=100) == []
    assert len(warnings_of(watch, slow, times=50)) == 1


def test_tiny_differences_do_not_count_however_large_their_ratio() -> None:
    assert warnings_of(LagWatch(), (0.001, 0.004), times=50) == []


def test_silence_says_nothing() -> None:
    watch = LagWatch()
    warnings_of(watch, (0.02, 0.08), times=5)
    assert warnings_of(watch, (), times=50) == []
