import pytest

from tests.deploy.chart import MAJORS, tool


@pytest.fixture(params=MAJORS)
def major(request: pytest.FixtureRequest) -> str:
    """A major version of Helm that is installed."""
    need(f"helm{request.param}")
    return str(request.param)


@pytest.fixture
def helm() -> None:
    """Helm 4 is installed."""
    need("helm4")


def need(name: str) -> str:
    """The tool's path; skips the test without it."""
    path = tool(name)
    if not path.exists():
        pytest.skip(f"{name} is not in {path.parent}: run deploy/helm/get-tools.sh")
    return str(path)
