"""Real vLLM: three routes, one answer; scores; an independent implementation; what the compact route refuses."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.domain.columns import TokenColumns
from app.domain.sampling import Elicitation, SamplingParameters
from app.errors import TeacherRefusedKey, TeacherUnavailable, TransientTeacherError, Unsupported
from app.teachers import TeacherAccess, build
from app.teachers.base import Capabilities, GenerateRequest, Generation, Teacher, TeacherSpec
from app.teachers.compact import decode
from app.teachers.inside_vllm.retort_route.wire import GENERATE, INFO
from app.teachers.transport import LocalTransport
from scripts.environment import SUITES
from tests.fixtures.vllm_cpu import (
    ENVIRONMENT,
    KEY,
    MAX_MODEL_LEN,
    QUIET,
    SERVED,
    TOP_LOGPROBS,
    Talks,
    VllmServer,
    checkpoint,
    python,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROUTES = ("compact", "completions", "chat")
QUESTIONS = (
    "Tell me about the sea.",
    "What is 17 plus 25? Explain.",
    "Übersetze ins Deutsche: Good morning, café!",
)
CLOSE = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def request(question: str = QUESTIONS[0], k: int = TOP_LOGPROBS, **changes: Any) -> GenerateRequest:
    given: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 20}
    sampling = SamplingParameters(**(given | changes.pop("sampling", {})))
    return GenerateRequest(({"role": "user", "content": question},), sampling, top_logprobs=k, **changes)


def tokens_of(generation: Generation) -> TokenColumns:
    assert generation.tokens is not None
    return generation.tokens


def differ(one: TokenColumns, other: TokenColumns) -> float:
    """The largest difference of logprobs, candidate by candidate; infinite where they are not of the same tokens."""
    if one.token_ids.tolist() != other.token_ids.tolist() or one.topk_ids.shape != other.topk_ids.shape:
        return float("inf")
    swapped = one.topk_ids != other.topk_ids
    if (np.abs(one.topk_logprobs - other.topk_logprobs)[swapped] > 1e-4).any():
        return float("inf")
    both = (
        np.abs(one.topk_logprobs - other.topk_logprobs),
        np.abs(one.sampled_logprob - other.sampled_logprob),
    )
    return float(max(both[0].max(), both[1].max()))


# -- the probe ---------------------------------------------------------------------------------------------------------


def test_the_probe_finds_what_is_there(talk: Talks) -> None:
    async def probe(teacher: Teacher) -> Capabilities:
        return await teacher.capabilities()

    found = {route: talk(probe, route=route) for route in (*ROUTES, "auto")}
    assert found["auto"] == found["compact"]
    for route, one in found.items():
        assert one.reachable, one.problems
        assert one.problems == ()
        assert one.engine == "vllm 0.32.0"
        assert one.max_top_logprobs == TOP_LOGPROBS + (0 if route == "chat" else 1)
        assert (one.token_ids, one.prompt_token_ids, one.native_n, one.seed, one.scoring) == (True,) * 5
        assert one.max_model_len == MAX_MODEL_LEN
        assert one.tokenizer_sha256 == found["auto"].tokenizer_sha256
        assert one.chat_template_sha256 == found["auto"].chat_template_sha256
    told = found["auto"]
    assert (told.vocab_size, told.details["dtype"], told.details["logprobs_mode"]) == (
        49152,
        "float32",
        "raw_logprobs",
    )
    assert told.weights_sha256 is not None
    assert told.identity()["weights_sha256"] == told.weights_sha256


# -- three routes, one answer ------------------------------------------------------------------------------------------

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "the server's own": {"temperature": None},
    "greedy": {"temperature": 0},
    "truncated": {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "min_p": 0.02},
    "penalised": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
    "hot": {"temperature": 2.0},
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_all_routes_give_the_same_ids_and_logprobs(talk: Talks, sampling: str) -> None:
    async def work(teacher: Teacher) -> list[Generation]:
        return await teacher.generate(request(sampling=SAMPLINGS[sampling], sample_indices=(0, 1)))

    found = {route: talk(work, route=route) for route in ROUTES}
    outside = 0
    for number in range(2):
        compact = found["compact"][number]
        columns = tokens_of(compact)
        assert columns.k == TOP_LOGPROBS
        assert (columns.topk_ids >= 0).all()
        assert (np.diff(columns.topk_logprobs, axis=1) <= 0).all()
        outside += int((columns.sampled_rank > TOP_LOGPROBS).sum())
        for route in ("completions", "chat"):
            other = found[route][number]
            assert differ(columns, tokens_of(other)) <= 1e-4, (route, number)
            assert tokens_of(other).prompt_ids.tolist() == columns.prompt_ids.tolist()
            assert (other.answer, other.finish_reason) == (compact.answer, compact.finish_reason)
            assert other.engine == compact.engine
            assert other.usage.prompt_tokens == compact.usage.prompt_tokens
    if sampling == "hot":
        assert outside, "no token was drawn from outside the candidates: the k + 1 trap was not met"


def test_a_sample_is_the_same_alone_and_among_its_siblings(talk: Talks) -> None:
    async def work(teacher: Teacher) -> tuple[list[Generation], list[Generation]]:
        return (
            await teacher.generate(request(sample_indices=(0, 1, 2, 3))),
            await teacher.generate(request(sample_indices=(3, 1))),
        )

    whole, some = talk(work)
    by_index = {one.sample_index: one for one in whole}
    for one in some:
        assert differ(tokens_of(one), tokens_of(by_index[one.sample_index])) <= 1e-4
    assert len({one.answer for one in whole}) > 1


@pytest.mark.parametrize("route", ["compact", "completions"])
def test_scoring_agrees_with_generation(talk: Talks, route: str) -> None:
    async def work(teacher: Teacher) -> list[tuple[TokenColumns, TokenColumns]]:
        pairs = []
        for question in QUESTIONS:
            made = tokens_of((await teacher.generate(request(question, sampling={"temperature": 1.5})))[0])
            scored = await teacher.score(made.prompt_ids.tolist(), made.token_ids.tolist(), TOP_LOGPROBS)
            pairs.append((made, scored))
        with pytest.raises(Unsupported):
            await teacher.score([1] * MAX_MODEL_LEN, [2], 1)
        return pairs

    for made, scored in talk(work, route=route):
        assert differ(made, scored) <= 1e-4
        inside = made.sampled_rank > 0
        assert (scored.sampled_rank[inside] == made.sampled_rank[inside]).all()
        assert (scored.sampled_rank > 0).all()  # vLLM ranks each token of a prompt


def test_an_independent_implementation_agrees(
    talk: Talks, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Ids and top-20 logprobs, before storage, against a plain transformers forward pass of the same checkpoint."""

    async def work(teacher: Teacher) -> list[Generation]:
        made = []
        for question in QUESTIONS:
            made += await teacher.generate(
                request(question, sampling={"temperature": 1.6, "max_tokens": 40}, sample_indices=(0, 1))
            )
        return made

    made = [tokens_of(one) for one in talk(work)]
    cases = [
        {
            "prompt_ids": one.prompt_ids.tolist(),
            "token_ids": one.token_ids.tolist(),
            "candidates": one.topk_ids.tolist(),
        }
        for one in made
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    result = tmp_path / "result.npz"
    forward = [python(), SUITES / ENVIRONMENT / "forward.py", checkpoint(), tmp_path / "cases.json", result]
    subprocess.run(forward, env={**QUIET}, check=True, timeout=300)
    plain = np.load(result)
    worst, positions, outside = 0.0, 0, 0
    for i, one in enumerate(made):
        worst = max(worst, float(np.abs(one.topk_logprobs - plain[f"asked_{i}"]).max()))
        worst = max(worst, float(np.abs(one.sampled_logprob - plain[f"own_{i}"]).max()))
        worst = max(worst, float(np.abs(one.topk_logprobs - plain[f"top_{i}"]).max()))  # none is missing
        clear = np.diff(plain[f"top_{i}"], axis=1, append=-np.inf) < -1e-3
        clear &= np.diff(plain[f"top_{i}"], axis=1, prepend=np.inf) < -1e-3
        clear[:, -1] = False  # what comes after it is not known
        assert (one.topk_ids[clear] == plain[f"top_ids_{i}"][clear]).all()
        positions += len(one)
        outside += int((one.sampled_rank > TOP_LOGPROBS).sum())
    record_property("max_difference", worst)
    record_property("positions", positions)
    record_property("drawn_from_outside", outside)
    assert worst <= 5e-4
    assert positions > 100
    assert outside > 0


# -- what else is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_a_schema_is_followed(talk: Talks, route: str) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    async def work(teacher: Teacher) -> Generation:
        sampling = {"temperature": 0.7, "max_tokens": 120}
        return (
            await teacher.generate(request("Describe a person.", sampling=sampling, response_schema=schema))
        )[0]

    made = talk(work, route=route)
    found = json.loads(made.answer)
    assert set(found) == {"name", "age"}
    assert type(found["age"]) is int
    assert len(tokens_of(made)) == made.usage.completion_tokens


@pytest.mark.parametrize("route", ["compact", "completions"])
def test_a_stop_string_and_its_tokens_are_cut_off(talk: Talks, route: str) -> None:
    async def work(teacher: Teacher) -> tuple[Generation, Generation, str]:
        whole = (await teacher.generate(request(sampling={"temperature": 0})))[0]
        stop = whole.answer[30:36]
        return whole, (await teacher.generate(request(sampling={"temperature": 0, "stop": (stop,)})))[0], stop

    whole, cut, stop = talk(work, route=route)
    assert cut.answer == whole.answer[: whole.answer.index(stop)]
    assert (cut.finish_reason, cut.provider_extra) == ("stop", {"stop_reason": stop})
    count = len(tokens_of(cut))
    assert 0 < count < len(tokens_of(whole))
    assert tokens_of(cut).token_ids.tolist() == tokens_of(whole).token_ids[:count].tolist()


@pytest.mark.parametrize("route", ["compact", "completions"])
def test_a_trace_is_elicited_by_ids(talk: Talks, vllm_server: VllmServer, route: str) -> None:
    async def work(teacher: Teacher) -> list[Generation]:
        sampling = {"temperature": 0.7, "max_tokens": 60}
        asked = request(sampling=sampling, elicit=Elicitation(max_reasoning_tokens=16), sample_indices=(0, 1))
        return await teacher.generate(asked)

    with httpx.Client(base_url=vllm_server.root, trust_env=False) as http:
        for made in talk(work, route=route):
            columns = tokens_of(made)
            assert made.reasoning
            assert made.reasoning_source == "elicited"
            assert made.reasoning_truncated == (made.calls == 2)
            text = http.post("/detokenize", json={"tokens": columns.token_ids.tolist()}).json()["prompt"]
            assert text.startswith("<think>\n")
            assert "</think>" in text
            assert made.answer.strip() in text
            assert not columns.sampled[0]
            assert np.isnan(columns.sampled_logprob[~columns.sampled]).all()
            assert (columns.sampled_logprob[columns.sampled] <= 0).all()


def test_a_prompt_that_fills_the_context_is_refused_and_a_long_one_is_answered(
    talk: Talks,
) -> None:
    async def work(teacher: Teacher) -> Generation:
        with pytest.raises(Unsupported, match="takes fewer than 1024"):
            await teacher.generate(request("word " * 1100))
        return (await teacher.generate(request("word " * 900, sampling={"max_tokens": 1000})))[0]

    made = talk(work)
    columns = tokens_of(made)
    assert len(columns.prompt_ids) + len(columns) <= MAX_MODEL_LEN


# -- the compact route by itself ---------------------------------------------------------------------------------------


def compact(
    server: VllmServer, body: Any, path: str = GENERATE, method: str = "POST", **options: Any
) -> httpx.Response:
    given: dict[str, Any] = {"headers": CLOSE, "timeout": 300} | options
    if body is not None:
        given["content"] = body if isinstance(body, bytes) else json.dumps(body)
    with httpx.Client(base_url=server.root, trust_env=False) as http:
        return http.request(method, path, **given)


def test_stop_ids_and_lengths(vllm_server: VllmServer) -> None:
    ids = [1, 4093, 198, 57, 5248, 2, 198, 1, 520, 9531, 198]
    base = {"prompt_token_ids": ids, "temperature": 0, "ignore_eos": True, "max_tokens": 20}
    prompt = np.array(ids, np.int32)
    whole = decode(compact(vllm_server, base).content, 1, None, None, prompt).choices[0]
    assert (len(whole.tokens), whole.finish_reason, whole.stop_reason) == (20, "length", None)
    wanted = int(whole.tokens.token_ids[9])
    first = whole.tokens.token_ids.tolist().index(wanted)
    answer = compact(vllm_server, {**base, "stop_token_ids": [wanted], "text": False})
    cut = decode(answer.content, 1, None, None, prompt).choices[0]
    assert cut.tokens.token_ids.tolist() == whole.tokens.token_ids[: first + 1].tolist()
    assert (cut.finish_reason, cut.stop_reason, cut.text) == ("stop", wanted, "")
    later = compact(vllm_server, {**base, "stop_token_ids": [wanted], "min_tokens": 15})
    assert len(decode(later.content, 1, None, None, prompt).choices[0].tokens) >= 15


def test_a_token_costs_no_more_than_180_bytes(vllm_server: VllmServer) -> None:
    body = {
        "prompt_token_ids": [1, 520, 9531, 198],
        "ignore_eos": True,
        "max_tokens": 64,
        "top_logprobs": 20,
        "seed": 1,
    }
    answer = compact(vllm_server, body)
    assert len(decode(answer.content, 1, 20, None, np.zeros(0, np.int32)).choices[0].tokens) == 64
    assert len(answer.content) / 64 <= 180 + 5  # a header of some 300 bytes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"prompt_token_ids": [49152]}, 400),
        ({"prompt_token_ids": [1], "top_logprobs": TOP_LOGPROBS + 2}, 400),
        ({"prompt_token_ids": [1], "prompt_logprobs": TOP_LOGPROBS + 2, "max_tokens": 0}, 400),
        ({"prompt_token_ids": [1] * (MAX_MODEL_LEN + 1)}, 400),
        ({"prompt_token_ids": [1] * MAX_MODEL_LEN}, 400),
        ({"prompt_token_ids": [1], "top_p": 0}, 400),
        ({"prompt_token_ids": [1], "n": 2, "temperature": 0}, 400),
        ({"prompt_token_ids": [1], "n": 16_384, "max_tokens": 10**30}, 400),
        ({"prompt_token_ids": [1], "structured_outputs": {"regex": "(["}}, 400),
        ({"prompt_token_ids": [1], "structured_outputs": {"json": {"type": "x"}, "regex": "a"}}, 400),
        ({"prompt_token_ids": [1], "structured_outputs": {"json": {"$ref": "#/nowhere"}}}, 400),
        ({"prompt_token_ids": [1], "structured_outputs": {}}, 400),
        ({"prompt_token_ids": [1], "thinking_token_budget": 3}, 400),
        ({"prompt_token_ids": [1], "stop_token_ids": [99_999]}, 400),
        ({"prompt_token_ids": [1], "min_tokens": 5, "max_tokens": 2}, 400),
        ({"prompt_token_ids": [1], "temperature": float("nan")}, 400),
        ({"prompt_token_ids": [1], "model": "another"}, 404),
        (b"[" * 200_000, 400),
        (b"\x00\xff" * 1000, 400),
        (b" " * 1_100_000, 413),
    ],
)
def test_hostile_bodies_are_refused_as_json(vllm_server: VllmServer, body: Any, status: int) -> None:
    answer = compact(vllm_server, body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()["error"]
    assert told["message"]
    assert told["code"] == status
    assert "Traceback" not in answer.text
    assert compact(vllm_server, {"prompt_token_ids": [1], "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}]
)
def test_without_the_key_nobody_is_let_in(vllm_server: VllmServer, headers: dict[str, str]) -> None:
    assert compact(vllm_server, {"prompt_token_ids": [1]}, headers=headers).status_code == 401
    assert compact(vllm_server, None, INFO, "GET", headers=headers).status_code == 401
    assert compact(vllm_server, b"x" * 50_000_000, headers=headers).status_code == 401


def test_a_wrong_key_is_told_as_such(vllm_server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        spec = TeacherSpec("t", "vllm", SERVED, None, vllm_server.url, "env:WRONG_KEY")
        teacher = build(spec, TeacherAccess(allow_loopback=True))
        assert "401" in (await teacher.capabilities()).problems[0]
        with pytest.raises(TeacherRefusedKey):
            await teacher.generate(request())
        await teacher.aclose()

    monkeypatch.setenv("WRONG_KEY", "wrong")
    asyncio.run(work())


# -- a client that leaves ----------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)


def head_of(length: int) -> bytes:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


LONG = {
    "prompt_token_ids": [1, 520, 9531, 198],
    "ignore_eos": True,
    "max_tokens": 900,
    "n": 3,
    "seed": 1,
    "top_logprobs": 5,
}


def test_a_call_that_is_cancelled_frees_its_slots(vllm_server: VllmServer) -> None:
    async def work() -> None:
        transport = LocalTransport(vllm_server.root, TeacherAccess(allow_loopback=True), CLOSE)
        call = asyncio.create_task(transport.post(GENERATE, json.dumps(LONG).encode(), 120))
        await asyncio.to_thread(until, lambda: vllm_server.metric("vllm:num_requests_running") == 3)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await transport.aclose()

    asyncio.run(work())
    assert_idle(vllm_server)


def test_a_connection_that_is_cut_frees_its_slots(vllm_server: VllmServer) -> None:
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", vllm_server.port)) as cut:
        cut.sendall(head_of(len(body)) + body)
        until(lambda: vllm_server.metric("vllm:num_requests_running") == 3)
    assert_idle(vllm_server)


def test_a_body_that_never_comes_whole_leaves_nothing(vllm_server: VllmServer) -> None:
    with socket.create_connection(("127.0.0.1", vllm_server.port)) as cut:
        cut.sendall(head_of(1000) + b'{"prompt_token_ids": [1, ')
        time.sleep(0.2)
    assert_idle(vllm_server)


def test_a_deadline_frees_the_slot(talk: Talks, vllm_server: VllmServer) -> None:
    async def work(teacher: Teacher) -> None:
        await teacher.capabilities()
        asked = request(sampling={"max_tokens": 900, "temperature": 2.0})
        with pytest.raises(TransientTeacherError):
            await teacher.generate(GenerateRequest(asked.messages, asked.sampling, deadline_s=1.0))

    talk(work)
    assert_idle(vllm_server)


def assert_idle(server: VllmServer) -> None:
    """Nothing runs and nothing is generated any more: by the end of these requests it would take many seconds."""
    until(lambda: server.metric("vllm:num_requests_running") == 0, 5)
    made = server.metric("vllm:generation_tokens_total")
    time.sleep(0.3)
    assert server.metric("vllm:generation_tokens_total") == made
    assert server.metric("vllm:num_requests_waiting") == 0
    assert compact(server, {"prompt_token_ids": [1], "max_tokens": 1}).status_code == 200


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async def work(teacher: Teacher) -> None:
        with pytest.raises(TeacherUnavailable):
            await teacher.generate(request())

    gone = VllmServer(tmp_path)
    talk = Talks(gone)
    talk(work)
    talk.close()
    gone.stop()
