"""Every fault ends in the outcome that docs/teachers.md promises, at each driver that speaks HTTP."""

import asyncio
import gzip
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import (
    MalformedAnswer,
    Overloaded,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TransientTeacherError,
)
from app.teachers import build
from app.teachers.base import Capabilities, GenerateRequest, Generation
from app.teachers.scripted import Script, ScriptedTeacher
from app.teachers.scripted_faults import Fault
from app.teachers.transport import MAX_ANSWER
from tests.contract.stages import ACCESS, secret
from tests.fixtures.loopback import serving
from tests.fixtures.provider_apis import KEY, ApiState, anthropic_api, gemini_api

IMPATIENT = 1.5  # seconds, where nothing else ends a call
PATIENT = 60.0


@dataclass(frozen=True)
class Faulty:
    """A driver whose server has one fault, and how often the server was called."""

    spec: TeacherSpec
    calls: Callable[[], int]

    def ask(self, **given: Any) -> Generation:
        async def run() -> Generation:
            teacher = build(self.spec, ACCESS)
            try:
                request = GenerateRequest(
                    messages=({"role": "user", "content": "hello"},),
                    sampling=SamplingParameters(max_tokens=8),
                    deadline_s=PATIENT,
                )
                (made,) = await teacher.generate(replace(request, **given))
                return made
            finally:
                await teacher.aclose()

        return asyncio.run(run())

    def probe(self) -> Capabilities:
        async def run() -> Capabilities:
            teacher = build(self.spec, ACCESS)
            try:
                return await teacher.capabilities()
            finally:
                await teacher.aclose()

        return asyncio.run(run())


@contextmanager
def openai(fault: Fault, provider: str = "vllm") -> Iterator[Faulty]:
    made = ScriptedTeacher(Script(tokens=12, faults=(fault,)))
    with serving(made.application) as url:
        spec = TeacherSpec("t", "openai", "scripted", base_url=f"{url}/v1", options={"provider": provider})
        yield Faulty(spec, lambda: made.calls)


def openai_over_httpx(fault: Fault) -> AbstractContextManager[Faulty]:
    return openai(fault, "openai")


@contextmanager
def anthropic(fault: Fault) -> Iterator[Faulty]:
    state = ApiState(fault=fault)
    with serving(lambda: anthropic_api(state)) as url, secret(KEY) as reference:
        spec = TeacherSpec("t", "anthropic", "claude-opus-4", base_url=url, secret_ref=reference)
        yield Faulty(spec, lambda: len(state.bodies))


@contextmanager
def gemini(fault: Fault) -> Iterator[Faulty]:
    state = ApiState(fault=fault)
    with serving(lambda: gemini_api(state)) as url, secret(KEY) as reference:
        spec = TeacherSpec("t", "gemini", "gemini-2.5-pro", base_url=f"{url}/v1beta", secret_ref=reference)
        yield Faulty(spec, lambda: len(state.bodies))


SERVERS: dict[str, Callable[[Fault], AbstractContextManager[Faulty]]] = {
    "openai": openai,
    "openai-httpx": openai_over_httpx,
    "anthropic": anthropic,
    "gemini": gemini,
}
at_each = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)

OUTCOMES: dict[str, type[TeacherError]] = {
    "429": RateLimited,
    "429-retry-after": RateLimited,
    "500": TransientTeacherError,
    "503": Overloaded,
    "400": PermanentTeacherError,
    "401": TeacherRefusedKey,
    "hang": TransientTeacherError,
    "cut": TransientTeacherError,
    "drip": TransientTeacherError,
    "half-json": MalformedAnswer,
    "wrong-type": MalformedAnswer,
    "huge": MalformedAnswer,
    "no-choices": MalformedAnswer,
}


@at_each
@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_fault_has_its_type(server: Callable[[Fault], AbstractContextManager[Faulty]], kind: Any) -> None:
    with server(Fault(kind=kind, seconds=7)) as faulty:
        if kind == "no-choices" and faulty.spec.driver == "openai":
            with pytest.raises(ValueError, match="not enough values"):  # none came: all are asked for again
                faulty.ask()
            return
        with pytest.raises(TeacherError) as raised:
            faulty.ask(deadline_s=IMPATIENT if kind in ("hang", "drip") else PATIENT)
        assert type(raised.value) is OUTCOMES[kind]
        if kind in ("hang", "drip"):
            assert "no whole answer within" in raised.value.detail
        else:
            assert faulty.calls() == 1, "drivers do not retry"
        if isinstance(raised.value, TransientTeacherError):
            assert raised.value.retry_after == (7 if kind == "429-retry-after" else None)


@at_each
def test_no_usage_is_unknown_and_not_0(server: Callable[[Fault], AbstractContextManager[Faulty]]) -> None:
    with server(Fault(kind="no-usage")) as faulty:
        made = faulty.ask()
    assert made.usage.prompt_tokens is None
    assert made.usage.completion_tokens != 0


@at_each
def test_a_short_fault_that_is_over_in_time_is_none(
    server: Callable[[Fault], AbstractContextManager[Faulty]],
) -> None:
    with server(Fault(kind="drip", seconds=0.1)) as faulty:
        assert faulty.ask().answer


@at_each
def test_a_probe_tells_of_a_fault_and_does_not_raise(
    server: Callable[[Fault], AbstractContextManager[Faulty]],
) -> None:
    for kind in ("500", "401", "half-json", "429", "cut"):
        with server(Fault(kind=kind)) as faulty:
            found = faulty.probe()
        assert not found.reachable
        assert found.problems


@pytest.mark.parametrize("kind", ["nan-logprobs", "zero-logprobs", "no-logprobs"])
def test_numbers_that_are_no_logprobs(kind: Any) -> None:
    with openai(Fault(kind=kind)) as faulty:
        with pytest.raises(MalformedAnswer):
            faulty.ask(top_logprobs=3)
        assert faulty.ask().answer, "an answer without logprobs was asked for, and is one"
        found = faulty.probe()
        assert (found.reachable, found.max_top_logprobs) == (True, 0)
        assert found.problems


def test_the_documented_outcomes_are_these() -> None:
    """docs/teachers.md, "What a call ends in": each line of the table, by what the teacher does."""
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    table = page.split("## What a call ends in")[1].split("\n## ")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")]
    documented = {what.strip(): kind.strip(" `") for what, kind in lines}
    words = {"half-json": "half a JSON", "wrong-type": "content type", "huge": "64 MiB", "cut": "cuts",
             "hang": "hangs", "drip": "drips", "429-retry-after": "429, with", "no-choices": "no choices"}  # fmt: skip
    for kind, raised in OUTCOMES.items():
        (found,) = [told for what, told in documented.items() if words.get(kind, kind) in what]
        assert found == raised.kind, kind


# -- bounded memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["vllm", "openai"])
def test_an_answer_that_announces_a_gigabyte_is_refused_by_its_head(provider: str) -> None:
    """Of the body nothing is sent before the client has left: who waited for it would wait for ever."""
    left = threading.Event()

    async def announce(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Content-Length": str(1 << 30)}
        answer = web.StreamResponse(headers=headers)
        await answer.prepare(request)
        try:
            await asyncio.sleep(2 * PATIENT)
        except asyncio.CancelledError:
            left.set()
            raise
        return answer

    _poured(announce, provider)
    assert left.wait(10), "the connection is closed, too"


@pytest.mark.parametrize("provider", ["vllm", "openai"])
def test_an_answer_of_a_gigabyte_is_let_go_of(provider: str) -> None:
    written = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal written
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        block = b" " * (1 << 18)
        while written < 1 << 30:
            await answer.write(block)
            written += len(block)
        return answer

    most, peak = _poured(pour, provider)
    # What the client did not take lies in the kernel's buffers: megabytes, whatever their size.
    assert MAX_ANSWER <= written < 1 << 29
    assert peak < most


def test_an_answer_that_unpacks_to_a_gigabyte_is_let_go_of() -> None:
    bomb = gzip.compress(bytes(1 << 30), 1)

    async def pour(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        return web.Response(body=bomb, headers=headers)

    most, peak = _poured(pour, "openai")
    assert peak < 2 * most


def _poured(pour: Callable[[web.Request], Any], provider: str) -> tuple[int, int]:
    """(bytes that may be held, bytes that were held at most) while a driver meets such a server."""

    def application() -> web.Application:
        made = web.Application()
        made.router.add_post("/v1/chat/completions", pour)
        return made

    with serving(application, handler_cancellation=True) as url:
        spec = TeacherSpec("t", "openai", "m", base_url=f"{url}/v1", options={"provider": provider})
        tracemalloc.start()
        try:
            with pytest.raises(MalformedAnswer, match="longer than 64 MiB"):
                Faulty(spec, lambda: 1).ask()
            return 2 * MAX_ANSWER, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
