"""A real vLLM server on the processor."""

from collections.abc import Iterator

import pytest

from tests.fixtures.vllm_cpu import DEFAULTS, Talks, VllmServer


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """With the compact route, started by `retort vllm-serve`; all tests share it."""
    arguments = ("--override-generation-config", DEFAULTS)
    with VllmServer(tmp_path_factory.mktemp("vllm"), arguments) as server:
        yield server


@pytest.fixture(scope="session")
def talk(vllm_server: VllmServer) -> Iterator[Talks]:
    made = Talks(vllm_server)
    yield made
    made.close()
