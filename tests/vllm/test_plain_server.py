"""A vLLM server as users have one: no compact route, masked logprobs, a template that opens a trace, a budget."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.sampling import SamplingParameters
from app.errors import Unsupported
from app.teachers.base import Capabilities, GenerateRequest, Generation, Teacher
from tests.fixtures.vllm_cpu import Talks, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)
REASONING = '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}'


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talks]:
    folder: Path = tmp_path_factory.mktemp("plain")
    (folder / "template.jinja").write_text(TEMPLATE)
    arguments = ("--logprobs-mode", "processed_logprobs", "--chat-template", str(folder / "template.jinja"))
    with VllmServer(folder, (*arguments, "--reasoning-config", REASONING), plain=True) as server:
        made = Talks(server)
        yield made
        made.close()


def request(**changes: Any) -> GenerateRequest:
    given: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_tokens": 24}
    sampling = SamplingParameters(**(given | changes.pop("sampling", {})))
    turn: Any = {"role": "user", "content": "What is 3 plus 4?"}
    return GenerateRequest((turn,), sampling, **changes)


def test_the_probe_refuses_soft_labels_and_says_why(talk: Talks) -> None:
    async def work(teacher: Teacher) -> Capabilities:
        found = await teacher.capabilities()
        with pytest.raises(Unsupported):
            await teacher.generate(request(top_logprobs=1))
        return found

    found = talk(work)
    assert found.reachable
    assert (found.compact_route, found.max_top_logprobs, found.scoring) == (False, 0, False)
    assert any("retort vllm-serve" in problem for problem in found.problems)
    assert any("--logprobs-mode raw_logprobs" in problem for problem in found.problems)


def test_ids_come_without_soft_labels(talk: Talks) -> None:
    async def work(teacher: Teacher) -> list[Generation]:
        return await teacher.generate(request(sample_indices=(0, 1)))

    for made in talk(work):
        assert made.tokens is not None
        assert made.tokens.k == 0
        assert len(made.tokens) == made.usage.completion_tokens
        assert made.reasoning is not None  # the template had opened it
        assert made.reasoning_source == "native"


def test_a_budget_that_ends_the_trace_is_marked(talk: Talks) -> None:
    budget = 8

    async def work(teacher: Teacher) -> tuple[Generation, list[int]]:
        asked = request(sampling={"thinking_token_budget": budget})
        ends = await teacher._prompts.ids_of("</think>")  # type: ignore[attr-defined]
        return (await teacher.generate(asked))[0], ends

    made, end = talk(work)
    columns = made.tokens
    assert columns is not None
    forced = np.flatnonzero(~columns.sampled)
    assert columns.token_ids[forced].tolist() == end
    assert np.diff(forced).tolist() == [1] * (len(end) - 1)
    assert abs(int(forced[0]) - budget) <= 4
    assert made.reasoning_truncated
    assert made.reasoning
    assert "</think>" not in made.answer
