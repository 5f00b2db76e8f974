"""What every driver keeps, whatever it speaks to: the contract of `app.teachers.base.Teacher`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from app.domain.columns import TokenColumns
from app.domain.fingerprints import fingerprint
from app.domain.sampling import Elicitation, SamplingParameters
from app.errors import InvalidInput, TeacherUnavailable, Unsupported
from app.teachers import build, known_drivers
from app.teachers.base import Capabilities, GenerateRequest, Generation, Teacher
from tests.contract.stages import ACCESS, SECOND, SLOW, STAGES, Stage
from tests.fixtures.processes import free_port

T = TypeVar("T")

# A model that runs on this machine's processor answers what only a model can; the rest is asked of servers.
every = pytest.mark.parametrize("stage", list(STAGES), indirect=True)
scripted = pytest.mark.parametrize("stage", [name for name in STAGES if name not in SLOW], indirect=True)
each_driver = pytest.mark.parametrize("stage", [name for name in STAGES if name not in SECOND], indirect=True)
over_http = pytest.mark.parametrize("stage", [name for name in STAGES if name != "embedded"], indirect=True)

FINISHES = {"stop", "length", "tool_calls", "content_filter", "refusal"}


def asked(stage: Stage, work: Callable[[Teacher], Awaitable[T]]) -> T:
    """What `work` makes of a teacher that was probed, as the engine does before its first call."""

    async def run() -> T:
        teacher = stage.teacher()
        try:
            await teacher.capabilities()
            return await work(teacher)
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def question(text: str = "Name three colours.", **given: object) -> GenerateRequest:
    request = GenerateRequest(
        messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": text}),
        sampling=SamplingParameters(temperature=1.0, max_tokens=4, seed=7),
        deadline_s=60,
    )
    return replace(request, **given)  # type: ignore[arg-type]


def check_generation(made: Generation, index: int) -> None:
    assert made.sample_index == index
    assert made.answer or made.tool_calls or made.reasoning
    assert made.finish_reason in FINISHES
    assert (len(made.request_hash), len(made.response_hash)) == (32, 32)
    assert made.calls >= 1
    usage = made.usage
    assert usage.prompt_tokens is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens is not None
    assert usage.completion_tokens > 0
    assert (usage.reasoning_tokens or 0) <= usage.completion_tokens
    assert (usage.cached_tokens or 0) <= usage.prompt_tokens
    assert (made.reasoning is None) == (made.reasoning_source is None)


def check_columns(columns: TokenColumns, k: int) -> None:
    length = len(columns)
    assert length > 0
    assert columns.topk_ids.shape == columns.topk_logprobs.shape == (length, k)
    assert [str(array.dtype) for array in (columns.token_ids, columns.topk_logprobs)] == ["int32", "float32"]
    assert (columns.token_ids >= 0).all()
    assert not np.isnan(columns.topk_logprobs).any()
    assert (columns.topk_logprobs <= 0).all()
    assert (columns.topk_logprobs[:, :-1] >= columns.topk_logprobs[:, 1:]).all(), "likeliest first"
    assert (np.exp(columns.topk_logprobs.astype(np.float64)).sum(axis=1) < 1 + 1e-3).all()
    found = columns.sampled_rank > 0
    rows = np.nonzero(found)[0]
    ranked = columns.topk_ids[rows, columns.sampled_rank[rows] - 1]
    assert (ranked == columns.token_ids[rows]).all()


def test_every_driver_of_the_registry_is_on_a_stage() -> None:
    by_itself = {"vllm-engine"}  # needs vLLM in the same process: tests/vllm/test_in_process.py
    assert {name.partition("-")[0] for name in STAGES} | by_itself >= set(known_drivers())


@every
def test_building_calls_nobody(stage: Stage) -> None:
    stage.teacher()
    assert not stage.state.paths


@every
def test_a_probe_tells_what_there_is_and_the_same_twice(stage: Stage) -> None:
    async def work(teacher: Teacher) -> tuple[Capabilities, Capabilities]:
        return await teacher.capabilities(), await teacher.capabilities()

    first, again = asked(stage, work)
    assert first.reachable, first.problems
    assert first.served_model
    assert fingerprint(first.identity()) == fingerprint(again.identity())
    assert first == again
    assert all(sentence.strip() for sentence in first.problems)
    assert first.max_top_logprobs or first.problems, "no logprobs, and no word why"


@each_driver
def test_one_sample(stage: Stage) -> None:
    (made,) = asked(stage, lambda teacher: teacher.generate(question()))
    check_generation(made, 0)
    assert made.finish_reason == "length"


@each_driver
def test_samples_keep_their_numbers(stage: Stage) -> None:
    made = asked(stage, lambda teacher: teacher.generate(question(sample_indices=(2, 5, 6))))
    assert sorted(one.sample_index for one in made) == [2, 5, 6]
    for one in made:
        check_generation(one, one.sample_index)
    assert sum(one.usage.billed_prompt_tokens or one.usage.prompt_tokens or 0 for one in made) > 0


@every
def test_logprobs_are_columns_or_refused(stage: Stage) -> None:
    async def work(teacher: Teacher) -> tuple[Capabilities, Generation | None]:
        found = await teacher.capabilities()
        if not found.max_top_logprobs:
            with pytest.raises(Unsupported):
                await teacher.generate(question(top_logprobs=5))
            return found, None
        (made,) = await teacher.generate(question(top_logprobs=5))
        return found, made

    found, made = asked(stage, work)
    if made is not None:
        assert made.tokens is not None
        assert found.token_ids
        check_columns(made.tokens, 5)
        told = (made.usage.completion_tokens or 0) - (made.usage.reasoning_tokens or 0)
        assert len(made.tokens) in (told, made.usage.completion_tokens), "of the answer, or of the trace too"


@each_driver
def test_a_seed_means_the_same_answer(stage: Stage) -> None:
    async def work(teacher: Teacher) -> tuple[bool, str, str, str]:
        found = await teacher.capabilities()
        answers = [
            (await teacher.generate(question(sample_indices=(index,))))[0].answer for index in (3, 3, 4)
        ]
        return found.seed, answers[0], answers[1], answers[2]

    seeded, first, again, other = asked(stage, work)
    if seeded:
        assert first == again
        assert first != other


@each_driver
def test_dialogues_are_taken(stage: Stage) -> None:
    turns = (
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello! What can I do?"},
        {"role": "user", "content": [{"type": "text", "text": "Name a colour."}]},
    )
    (made,) = asked(stage, lambda teacher: teacher.generate(question(messages=turns)))
    check_generation(made, 0)


@every
def test_a_trace_can_be_asked_for(stage: Stage) -> None:
    request = question(elicit=Elicitation(max_reasoning_tokens=4))
    (made,) = asked(stage, lambda teacher: teacher.generate(request))
    check_generation(made, 0)
    if made.reasoning is not None:
        assert made.reasoning_source in ("native", "elicited")


@scripted
def test_scoring_is_columns_or_refused(stage: Stage) -> None:
    async def work(teacher: Teacher) -> TokenColumns | None:
        if (await teacher.capabilities()).scoring:
            return await teacher.score([1, 2, 3], [4, 5], 3)
        with pytest.raises(Unsupported):
            await teacher.score([1, 2, 3], [4, 5], 3)
        return None

    columns = asked(stage, work)
    if columns is not None:
        check_columns(columns, 3)
        assert columns.token_ids.tolist() == [4, 5]


@every
def test_an_option_that_nobody_knows_is_refused(stage: Stage) -> None:
    with pytest.raises(InvalidInput):
        build(replace(stage.spec, options={**stage.spec.options, "no_such_option": 1}), ACCESS)


@over_http
def test_nobody_there(stage: Stage) -> None:
    away = replace(stage, spec=replace(stage.spec, base_url=f"http://127.0.0.1:{free_port()}/v1"))

    async def work() -> Capabilities:
        teacher = away.teacher()
        try:
            with pytest.raises(TeacherUnavailable):
                await teacher.generate(question())
            return await teacher.capabilities()
        finally:
            await teacher.aclose()

    found = asyncio.run(work())
    assert (found.reachable, len(found.problems) > 0) == (False, True)


@over_http
@pytest.mark.parametrize("address", ["http://169.254.169.254/v1", "http://[fe80::1]/v1", "http://0.0.0.0/v1"])
def test_addresses_that_are_never_called(stage: Stage, address: str) -> None:
    with pytest.raises(Unsupported):
        build(replace(stage.spec, base_url=address), ACCESS)


@scripted
def test_closing_twice_is_once(stage: Stage) -> None:
    async def work() -> None:
        teacher = stage.teacher()
        await teacher.generate(question())
        await teacher.aclose()
        await teacher.aclose()

    asyncio.run(work())
