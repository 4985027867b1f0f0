import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.verify.test_verify_reference import REFERENCE

from rufus_serve.errors import EndpointError
from rufus_serve.verify.comparison import Limits, compare
from rufus_serve.verify.reference import Choice, Prompt, Reference

LIMITS = Limits(margin=0.5, mean_error=0.1)


def choice(token, other, margin):
    """`token` is `margin` nats likelier than `other`."""
    return Choice(token=token, logprob=-0.1, top={token: -0.1, other: -0.1 - margin, 99: -9.0})


def referring(*choices):
    prompt = Prompt(text="a prompt", tokens=(50, 51), choices=tuple(choices))
    return Reference(model=REFERENCE.model, made_by="a test", prompts=(prompt,))


class Served:
    """Answers with its own tokens, whatever led there; keeps what it was asked."""

    def __init__(self, *tokens, shift=0.0):
        self.tokens, self.shift, self.asked = tokens, shift, []

    def __call__(self, tokens, count):
        self.asked.append((list(tokens), count))
        done = len(tokens) - 2
        return [
            Choice(token=own, logprob=-0.1 + self.shift, top={own: -0.1 + self.shift})
            for own in self.tokens[done : done + count]
        ]


def compared(reference, served, limits=LIMITS):
    return compare(reference, served, limits=limits, same_checkpoint=True)


def test_the_same_tokens_are_the_model():
    report = compared(referring(choice(1, 2, 3), choice(2, 3, 3)), Served(1, 2))
    assert (report.agreement, report.mean_error, report.faults) == (1.0, 0.0, [])
    assert report.worst is None


def test_it_is_led_through_the_references_tokens_behind_a_divergence():
    served = Served(1, 7, 3, 4)
    reference = referring(choice(1, 2, 1), choice(2, 7, 0.25), choice(3, 2, 1), choice(4, 2, 1))
    report = compared(reference, served)
    assert served.asked == [([50, 51], 4), ([50, 51, 1, 2], 2)]
    (divergence,) = report.divergences
    assert (divergence.position, divergence.expected, divergence.found) == (1, 2, 7)
    assert divergence.margin == pytest.approx(0.25)
    assert report.agreement == 0.75


def test_a_near_tie_is_rounding_and_a_wide_margin_is_not():
    near, wide = (referring(choice(1, 2, margin)) for margin in (0.4, 0.6))
    served, limits = Served(2), Limits(margin=0.5, mean_error=9)
    assert compared(near, served, limits).faults == []
    (fault,) = compared(wide, served, limits).faults
    assert "2 instead of 1, which the reference holds 0.600 nats likelier" in fault


def test_a_token_the_reference_does_not_list_has_at_least_the_margin_of_its_last():
    report = compared(referring(choice(1, 2, 1)), Served(77))
    assert report.worst.is_at_least
    assert report.worst.margin == pytest.approx(8.9)


def test_log_probabilities_that_are_off_are_a_fault_even_if_no_token_differs():
    (fault,) = compared(referring(choice(1, 2, 3)), Served(1, shift=-0.2)).faults
    assert "off by 0.200 nats" in fault


def test_log_probabilities_that_are_no_numbers_are_a_fault():
    assert compared(referring(choice(1, 2, 3)), Served(1, shift=float("nan"))).faults


def test_an_endpoint_that_ends_early_is_told_so():
    with pytest.raises(EndpointError, match="ended after 1 of 2 tokens of prompt 'a prompt'"):
        compared(referring(choice(1, 2, 1), choice(2, 3, 1)), Served(1))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_token_is_compared_once_however_often_it_diverges(pairs):
    reference = referring(*(choice(expected, expected + 1, 1) for expected, _ in pairs))
    report = compared(reference, Served(*(found for _, found in pairs)))
    wrong = [at for at, (expected, found) in enumerate(pairs) if expected != found]
    assert [each.position for each in report.divergences] == wrong
    assert report.num_tokens == len(pairs)
