"""One server for each driver and module of tests."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.contract.stages import STAGES, Stage


@pytest.fixture(scope="session")
def stages() -> Iterator[dict[str, Stage]]:
    """Servers that started already, by name; each starts when it is first asked for."""
    with ExitStack() as open_stages:

        class Lazily(dict[str, Stage]):
            def __missing__(self, name: str) -> Stage:
                self[name] = open_stages.enter_context(STAGES[name]())
                return self[name]

        yield Lazily()


@pytest.fixture
def stage(request: pytest.FixtureRequest, stages: dict[str, Stage]) -> Stage:
    """The stage that the test is parametrised with, its server as if nobody had called."""
    found = stages[request.param]
    found.state.__init__()  # type: ignore[misc]
    return found
