"""Driver `vllm` over real HTTP against the scripted server: routes, traps, faults, changes. See tests/vllm as well."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from app.domain.sampling import Elicitation, SamplingParameters
from app.errors import (
    IdentityChanged,
    InvalidInput,
    MalformedAnswer,
    Overloaded,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
    Unsupported,
)
from app.teachers import TeacherAccess, build
from app.teachers.base import GenerateRequest, Generation, Teacher, TeacherSpec
from app.teachers.scripted import Script
from app.teachers.scripted_faults import Fault, FaultKind
from app.teachers.scripted_tokens import text_of
from tests.fixtures.scripted import Recording, scripted

ROUTES = ("compact", "completions", "chat")
TOKEN_ROUTES = ("compact", "completions")
ASK = "What is the colour of the sky?"


def opened(url: str, **options: Any) -> Teacher:
    spec = TeacherSpec("t", "vllm", "scripted", base_url=url, options=options)
    return build(spec, TeacherAccess(allow_loopback=True))


def request(
    prompt: str = ASK, k: int = 0, samples: tuple[int, ...] = (0,), **changes: Any
) -> GenerateRequest:
    sampling = changes.pop("sampling", None) or SamplingParameters(seed=7, max_tokens=64)
    return GenerateRequest(
        messages=({"role": "user", "content": prompt},),
        sampling=sampling,
        sample_indices=samples,
        top_logprobs=k,
        deadline_s=20.0,
        **changes,
    )


T = TypeVar("T")


def talk(script: Script, work: Callable[[Teacher, Recording], Awaitable[T]], **options: Any) -> T:
    async def main() -> T:
        async with scripted(script) as (server, url):
            teacher = opened(url, **options)
            try:
                return await work(teacher, server)
            finally:
                await teacher.aclose()

    return asyncio.run(main())


def told(columns: Any) -> tuple[list[int], list[list[int]], list[list[float]]]:
    return columns.token_ids.tolist(), columns.topk_ids.tolist(), columns.topk_logprobs.tolist()


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_all_routes_give_the_same_columns() -> None:
    async def work(teacher: Teacher, server: Recording) -> list[Generation]:
        return await teacher.generate(request(k=5, samples=(0, 1, 2)))

    found = {route: talk(Script(tokens=40), work, route=route) for route in ROUTES}
    for made in found.values():
        assert [generation.sample_index for generation in made] == [0, 1, 2]
        for one, other in zip(made, found["compact"], strict=True):
            assert one.tokens is not None
            assert other.tokens is not None
            assert told(one.tokens) == told(other.tokens)
            assert len(one.tokens.prompt_ids)
            assert np.array_equal(one.tokens.prompt_ids, other.tokens.prompt_ids)
            assert one.answer == other.answer == text_of(tuple(one.tokens.token_ids.tolist()))
            assert one.tokens.topk_ids.shape == (40, 5)
            assert one.tokens.token_ids.flags.c_contiguous
            assert (one.tokens.topk_ids >= 0).all(), "a candidate was eaten by the sampled token"
            outside = one.tokens.token_ids % 7 == 0
            assert outside.any()
            assert (one.tokens.sampled_rank[~outside] == 1).all()
            assert (one.tokens.sampled_rank[outside] == (0 if made is not found["compact"] else 9)).all()
            assert one.usage.completion_tokens == 40
            assert one.engine == "vllm-0.32.0-scripted"
    assert sum(generation.usage.billed_prompt_tokens or 0 for generation in found["compact"]) == (
        found["compact"][0].usage.prompt_tokens
    )


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "think"])
def test_a_trace_is_told_apart_whatever_its_field_is_called(field: Any) -> None:
    """vLLM renamed `reasoning_content` to `reasoning`; a server without a parser leaves the tags in the text."""

    async def work(teacher: Teacher, server: Recording) -> Generation:
        return (await teacher.generate(request(k=5)))[0]

    made = talk(Script(tokens=12, reasoning=field), work, route="chat")
    plain = talk(Script(tokens=12), work, route="chat")
    assert made.reasoning == "I look at the words one by one."
    assert made.reasoning_source == "native"
    assert not made.reasoning_truncated
    assert made.answer == plain.answer
    assert plain.reasoning is None


@pytest.mark.parametrize("route", ROUTES)
def test_without_logprobs_there_are_ids(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> Generation:
        return (await teacher.generate(request()))[0]

    made = talk(Script(tokens=9), work, route=route)
    assert made.tokens is not None
    assert (len(made.tokens), made.tokens.k) == (9, 0)
    assert np.isnan(made.tokens.sampled_logprob).all()


@pytest.mark.parametrize("route", ROUTES)
def test_a_sample_has_its_seed_whoever_it_travels_with(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> tuple[list[Generation], list[Generation], int]:
        whole = await teacher.generate(request(samples=(0, 1, 2, 3)))
        server.asked.clear()
        return whole, await teacher.generate(request(samples=(1, 2, 0, 3))), len(server.asked)

    whole, again, calls = talk(Script(), work, route=route)
    assert {one.sample_index: one.answer for one in again} == {one.sample_index: one.answer for one in whole}
    assert calls == 3  # 1 and 2 are neighbours
    assert len({one.answer for one in whole}) == 4


def test_greedy_samples_are_asked_one_by_one() -> None:
    async def work(teacher: Teacher, server: Recording) -> list[int]:
        await teacher.generate(
            request(samples=(0, 1), sampling=SamplingParameters(temperature=0, max_tokens=4))
        )
        return [int(body["n"]) for _, body in server.asked if body.get("max_tokens") == 4]

    assert talk(Script(), work) == [1, 1]


def test_an_answer_that_would_be_too_long_is_split() -> None:
    async def work(teacher: Teacher, server: Recording) -> list[int]:
        sampling = SamplingParameters(max_tokens=30_000)
        await teacher.generate(request(k=20, samples=tuple(range(32)), sampling=sampling))
        return [int(body["n"]) for _, body in server.asked if body.get("max_tokens") == 30_000]

    asked = talk(Script(tokens=2), work)
    assert len(asked) > 1
    assert sum(asked) == 32


@pytest.mark.parametrize("route", TOKEN_ROUTES)
def test_scores_agree_with_generation(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        made = (await teacher.generate(request(k=5)))[0].tokens
        assert made is not None
        scored = await teacher.score(made.prompt_ids.tolist(), made.token_ids.tolist(), 5)
        assert told(scored) == told(made)
        assert scored.sampled_logprob.tolist() == made.sampled_logprob.tolist()
        assert (scored.sampled_rank[scored.token_ids % 7 == 0] == 9).all()
        for wrong in (([], [1], 5), ([1], [2] * 40_000, 5), ([1], [2], 21)):
            with pytest.raises(Unsupported):
                await teacher.score(*wrong)

    talk(Script(), work, route=route)


@pytest.mark.parametrize("route", TOKEN_ROUTES)
def test_an_elicited_trace_is_forced_shut_and_marked(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        elicit = Elicitation(max_reasoning_tokens=5)
        made = (await teacher.generate(request(k=3, elicit=elicit, samples=(1,))))[0]
        (_, first), (_, second) = server.asked[-2:]
        name = "prompt_token_ids" if route == "compact" else "prompt"
        columns = made.tokens
        assert columns is not None
        assert made.calls == 2
        assert made.reasoning_truncated
        forced = ~columns.sampled
        begin = int(np.argmax(columns.sampled))
        assert forced[:begin].all()
        assert columns.sampled[begin : begin + 5].all()
        end = begin + 5 + int(np.argmax(columns.sampled[begin + 5 :]))
        assert forced[begin + 5 : end].all()
        assert end > begin + 5
        assert columns.sampled[end:].all()
        assert first[name] == [*columns.prompt_ids.tolist(), *columns.token_ids[:begin].tolist()]
        assert second[name] == [*columns.prompt_ids.tolist(), *columns.token_ids[:end].tolist()]
        assert first["seed"] == second["seed"] == 8

    talk(Script(), work, route=route)


def test_what_is_asked_reaches_the_server() -> None:
    sampling = SamplingParameters(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.01,
        max_tokens=17,
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        thinking_token_budget=9,
    )
    common = sampling.asked() | {"n": 2, "model": "scripted", "request_id": "r1", "priority": -5}

    async def work(teacher: Teacher, server: Recording) -> dict[str, Any]:
        asked = request(
            k=4,
            sampling=sampling,
            samples=(0, 1),
            request_id="r1",
            priority=5,
            response_schema={"type": "object"},
        )
        await teacher.generate(asked)
        return server.asked[-1][1]

    for route in ROUTES:
        body = talk(Script(), work, route=route)
        assert {name: body[name] for name in common} == common, route
        if route == "chat":
            assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
            assert body["top_logprobs"] == 5  # one more: the sampled token may eat a candidate
        else:
            assert body["structured_outputs"] == {"json": {"type": "object"}}


def test_a_conversation_is_rendered_once() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.capabilities()
        before = server.renderings
        await asyncio.gather(*(teacher.generate(request(samples=(i,))) for i in range(8)))
        assert server.renderings == before + 1
        await teacher.generate(request("another"))
        sampling = SamplingParameters(chat_template_kwargs={"enable_thinking": False})
        await teacher.generate(request(sampling=sampling))
        assert server.renderings == before + 3

    talk(Script(), work)


@pytest.mark.parametrize(
    ("changes", "route"),
    [
        ({}, "compact"),
        ({"sampling": SamplingParameters(stop=("x",))}, "compact"),
        ({"tools": ({"type": "function", "function": {"name": "f"}},)}, "chat"),
    ],
)
def test_the_route_fits_what_is_asked(changes: dict[str, Any], route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> str:
        await teacher.generate(request(**changes))
        return server.asked[-1][0]

    assert talk(Script(), work) == route


def test_images_go_by_chat() -> None:
    async def work(teacher: Teacher, server: Recording) -> str:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        turn: Any = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}
        asked = GenerateRequest(messages=(turn,), sampling=SamplingParameters())
        await teacher.generate(asked)
        with pytest.raises(Unsupported, match="elicited"):
            await teacher.generate(GenerateRequest((turn,), SamplingParameters(), elicit=Elicitation()))
        return server.asked[-1][0]

    assert talk(Script(), work) == "chat"


# -- what the probe finds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 5, 20, 21, 128, 1500])
def test_the_cap_of_logprobs_is_found(most: int) -> None:
    async def work(teacher: Teacher, server: Recording) -> int:
        found = await teacher.capabilities()
        assert (not found.problems) == bool(found.max_top_logprobs)
        return found.max_top_logprobs

    assert talk(Script(max_logprobs=most), work, route="completions") == min(most, 1024)
    if most:
        assert talk(Script(max_logprobs=most), work, route="compact") == most
        assert talk(Script(max_logprobs=most), work, route="chat") == min(most, 1024) - 1


def test_a_server_without_the_compact_route_is_told_of_it() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        found = await teacher.capabilities()
        assert not found.compact_route
        assert (found.max_top_logprobs, found.scoring, found.token_ids) == (20, True, True)
        assert "retort vllm-serve" in found.problems[0]
        await teacher.generate(request(k=20))
        assert server.asked[-1][0] == "completions"

    talk(Script(compact=False), work)


def test_at_the_cap_the_chat_route_leaves_the_last_candidate_open() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        tools: Any = ({"type": "function", "function": {"name": "f"}},)
        columns = (await teacher.generate(request(k=20, tools=tools)))[0].tokens
        assert columns is not None
        outside = columns.token_ids % 7 == 0
        assert outside.any()
        assert (columns.topk_ids[:, 19] == -1).all()
        assert np.isneginf(columns.topk_logprobs[:, 19]).all()
        assert (columns.topk_ids[:, :19] >= 0).all()
        assert (columns.sampled_rank[outside] == 0).all()

    talk(Script(), work)


@pytest.mark.parametrize("route", TOKEN_ROUTES)
@pytest.mark.parametrize("kind", ["zero-logprobs", "nan-logprobs", "no-logprobs"])
def test_logprobs_that_are_none_are_refused_by_the_probe(kind: FaultKind, route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        found = await teacher.capabilities()
        assert found.reachable
        assert found.max_top_logprobs == 0
        assert not found.scoring
        assert "no soft labels" in found.problems[-1]
        with pytest.raises(Unsupported):
            await teacher.generate(request(k=1))
        assert (await teacher.generate(request()))[0].answer

    talk(Script(faults=(Fault(kind=kind, contains="Count"),)), work, route=route)


def test_a_server_that_masks_its_logprobs_is_refused() -> None:
    async def work(teacher: Teacher, server: Recording) -> str:
        found = await teacher.capabilities()
        assert found.max_top_logprobs == 0
        return found.problems[-1]

    assert "--logprobs-mode raw_logprobs" in talk(Script(logprobs_mode="processed_logprobs"), work)


@pytest.mark.parametrize(
    ("script", "options", "why"),
    [
        (Script(down=True), {}, "503"),
        (Script(model="other"), {}, "it has: other"),
        (Script(compact=False), {"route": "compact"}, "no compact route"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(script: Script, options: dict[str, Any], why: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        found = await teacher.capabilities()
        assert not found.reachable
        assert why in found.problems[0]
        with pytest.raises((TeacherUnavailable, TransientTeacherError)):
            await teacher.generate(request())

    talk(script, work, **options)


def test_nobody_there_is_unavailable() -> None:
    async def work() -> None:
        teacher = opened("http://127.0.0.1:9")
        found = await teacher.capabilities()
        assert not found.reachable
        with pytest.raises(TeacherUnavailable):
            await teacher.generate(request())
        await teacher.aclose()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("options", "why"),
    [({"router": "x"}, "router"), ({"route": "fast"}, "compact, completions, chat"), ({"route": 3}, "3")],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        opened("http://127.0.0.1:9", **options)


# -- faults ------------------------------------------------------------------------------------------------------------

OUTCOMES: dict[FaultKind, type[TeacherError]] = {
    "429": RateLimited,
    "429-retry-after": RateLimited,
    "500": TransientTeacherError,
    "503": Overloaded,
    "400": PermanentTeacherError,
    "401": TeacherRefusedKey,
    "cut": TransientTeacherError,
    "half-json": MalformedAnswer,
    "wrong-type": MalformedAnswer,
    "huge": MalformedAnswer,
    "nan-logprobs": MalformedAnswer,
    "no-choices": TransientTeacherError,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_fault_ends_as_it_is_documented_and_the_next_call_works(kind: FaultKind, route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.capabilities()
        with pytest.raises(OUTCOMES[kind]) as raised:
            await teacher.generate(request(k=3))
        if kind == "429-retry-after":
            assert isinstance(raised.value, RateLimited)
            assert raised.value.retry_after == 2.5
        assert len(await teacher.generate(request(k=3))) == 1

    fault = Fault(kind=kind, contains=ASK, first_calls=1, seconds=2.5)
    talk(Script(faults=(fault,)), work, route=route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_slow_answers_end_with_the_deadline_or_come(kind: FaultKind, route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.capabilities()
        asked = request(k=3)
        with pytest.raises(TransientTeacherError):
            await teacher.generate(
                GenerateRequest(asked.messages, asked.sampling, deadline_s=0.2, top_logprobs=3)
            )
        assert len(await teacher.generate(asked)) == 1

    talk(Script(faults=(Fault(kind=kind, contains=ASK, seconds=0.6),)), work, route=route)


@pytest.mark.parametrize("route", ROUTES)
def test_usage_that_is_not_told_stays_unknown(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> Generation:
        return (await teacher.generate(request()))[0]

    made = talk(Script(tokens=6, faults=(Fault(kind="no-usage", contains=ASK),)), work, route=route)
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (None, 6)


def test_one_bad_group_does_not_cost_the_others() -> None:
    async def work(teacher: Teacher, server: Recording) -> list[int]:
        await teacher.capabilities()
        greedy = SamplingParameters(temperature=0, max_tokens=4)
        made = await teacher.generate(request(samples=(0, 1, 2), sampling=greedy))
        return [one.sample_index for one in made]

    assert len(talk(Script(faults=(Fault(kind="500", contains=ASK, first_calls=1),)), work)) == 2


# -- a server that changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_another_version_is_another_teacher(route: str) -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        before = await teacher.capabilities()
        await teacher.generate(request())
        server.script = Script(version="0.33.0")
        with pytest.raises(IdentityChanged, match=r"0\.33\.0"):
            await teacher.generate(request())
        with pytest.raises(
            IdentityChanged
        ):  # a lane that began with the first one gets no answer of the second
            await teacher.generate(request())
        now = await teacher.capabilities()
        assert now.reachable
        assert now.identity() != before.identity()

    talk(Script(), work, route=route)


def test_all_calls_under_way_see_the_change_and_it_is_looked_at_once() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.capabilities()
        prompts = [f"{ASK} {number}" for number in range(20)]
        await asyncio.gather(*(teacher.generate(request(prompt)) for prompt in prompts))  # rendered by now
        looks = server.renderings
        server.script = Script(version="0.33.0")
        calls = (teacher.generate(request(prompt)) for prompt in prompts)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, IdentityChanged) for one in found), found
        assert server.renderings - looks == 3  # one look renders three conversations
        with pytest.raises(IdentityChanged):  # until somebody has asked who it is now
            await teacher.generate(request())
        await teacher.capabilities()
        assert (await teacher.generate(request()))[0].engine == "vllm-0.33.0-scripted"

    talk(Script(), work)


def test_a_route_that_is_gone_under_many_calls_is_probed_once() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.capabilities()
        for number in range(12):
            await teacher.generate(request(f"{ASK} {number}"))  # rendered by now
        server.script = Script(compact=False)
        asked = len(server.asked)
        calls = (teacher.generate(request(f"{ASK} {number}")) for number in range(12))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, TeacherError) for one in found), found
        assert len(server.asked) - asked < 24  # one probe

    talk(Script(), work)


def test_another_configuration_is_the_same_teacher() -> None:
    class Reconfigured(Script):
        @property
        def fingerprint(self) -> str:
            return "vllm-0.32.0-other"

    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.generate(request())
        server.script = Reconfigured()
        looks = server.renderings
        made = await teacher.generate(request())
        assert made[0].engine == "vllm-0.32.0-other"
        assert server.renderings > looks  # it was looked at, once
        looks = server.renderings
        await teacher.generate(request())
        assert server.renderings == looks

    talk(Script(), work)


def test_a_compact_route_that_is_gone_is_probed_again() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.generate(request())
        server.script = Script(compact=False)
        with pytest.raises(TransientTeacherError):
            await teacher.generate(request())
        await teacher.generate(request())
        assert server.asked[-1][0] == "completions"

    talk(Script(), work)


def test_another_model_under_the_address_is_not_the_prompts_fault() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        await teacher.generate(request())
        server.script = Script(model="other")
        with pytest.raises(TeacherUnavailable, match="no model 'scripted'"):
            await teacher.generate(request())

    for route in ROUTES:
        talk(Script(), work, route=route)


def test_a_template_that_changed_is_seen() -> None:
    async def work(teacher: Teacher, server: Recording) -> None:
        before = await teacher.capabilities()
        server._conversations = Marked()
        assert (await teacher.capabilities()).chat_template_sha256 != before.chat_template_sha256

    from app.teachers.scripted_tokens import Conversations

    class Marked(Conversations):
        def render(self, messages: list[dict[str, Any]]) -> tuple[int, ...]:
            return (1, *super().render(messages))

    talk(Script(), work)
