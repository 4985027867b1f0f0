"""What all who ask an OpenAI endpoint do alike."""


def base_url(url: str) -> str:
    """`url` as people write it, without what every route begins with."""
    return url.rstrip("/").removesuffix("/v1")


def bearer(api_key: str) -> dict[str, str]:
    """The header that a key goes in; none without a key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
