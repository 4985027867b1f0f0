from rufus_serve.leader.engine.suspects import Suspects


def test_the_first_refusal_fails_nobody_and_sets_its_requests_apart():
    suspects = Suspects()
    assert suspects.refused(("a", "b")) == []
    assert suspects.alone == {"a", "b"}


def test_the_second_refusal_fails_the_one_that_it_is_about_and_the_others_go_on():
    suspects = Suspects()
    suspects.refused(("a", "b", "c"))
    assert suspects.refused(("b",)) == ["b"]
    assert suspects.alone == {"a", "c"}


def test_a_suspect_whose_prompt_and_first_decode_pass_is_none_any_more():
    suspects = Suspects()
    suspects.refused(("a",))
    suspects.delivered("a")
    assert suspects.alone == {"a"}
    suspects.delivered("a")
    assert suspects.alone == set()
    assert suspects.refused(("a",)) == []


def test_requests_that_ended_are_forgotten():
    suspects = Suspects()
    suspects.refused(("a", "b"))
    suspects.forget(("a", "unknown"))
    assert suspects.alone == {"b"}
    suspects.delivered("a")
    assert suspects.alone == {"b"}
