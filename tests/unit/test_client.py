import pytest

from rufus_serve.client import base_url, bearer


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_an_endpoint_is_named_with_or_without_its_version(url: str) -> None:
    assert base_url(url) == "http://h:1"


def test_a_key_goes_into_a_header_and_no_key_into_none() -> None:
    assert bearer("k") == {"Authorization": "Bearer k"}
    assert bearer("") == {}
