"""The compact route without vLLM: the wire format, what it makes of requests, keys and sizes."""

import asyncio
import json
import struct
from argparse import Namespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import MalformedAnswer
from app.teachers.compact import CompactAnswer, decode
from app.teachers.inside_vllm.retort_route import CompactRoute
from app.teachers.inside_vllm.retort_route.request import FIELDS, Refused, read_request
from app.teachers.inside_vllm.retort_route.wire import (
    GENERATE,
    INFO,
    MAGIC,
    PREFIX,
    Choice,
    Rows,
    encode,
    rows_of,
)

PROMPT = np.array([5, 6, 7], np.int32)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def rows(count: int, k: int | None, seed: int = 0) -> Rows:
    """Candidates in descending order; the token that stands there is the second of them in even rows, else none."""
    if k is None:
        return Rows(
            np.arange(count, dtype=np.int32)[:, None], np.zeros((count, 0), np.float32), np.zeros(0, np.int32)
        )
    drawn = np.random.default_rng(seed)
    top = -np.sort(drawn.exponential(2.0, (count, k)).astype(np.float32) + np.float32(1.0), axis=1)
    ids = np.stack(
        [drawn.permutation(50_000)[: k + 1] for _ in range(count)] or [np.zeros(k + 1, np.int64)]
    ).astype(np.int32)
    ids, own = ids[:count], np.full((count, 1), -30.0, np.float32)
    ranks = np.full(count, 40_000, np.int32)
    if k >= 2:
        ids[::2, 0], own[::2, 0], ranks[::2] = ids[::2, 2], top[::2, 1], 2
    return Rows(ids, np.concatenate([own, top], axis=1), ranks)


def body(n: int, count: int, k: int | None, prompt_k: int | None = None, prompt_rows: int = 2) -> bytes:
    header = {
        "model": "m",
        "fingerprint": "f",
        "k": k,
        "prompt_k": prompt_k,
        "prompt_tokens": 3,
        "cached_tokens": 0,
    }
    choices = [Choice(i, rows(count, k, i), f"text {i} ü", "stop", None) for i in range(n)]
    return encode(header, choices, None if prompt_k is None else rows(prompt_rows, prompt_k, 99))


@given(
    n=st.integers(1, 3),
    count=st.integers(0, 5),
    k=st.none() | st.integers(0, 4),
    prompt_k=st.none() | st.integers(0, 3),
)
def test_what_is_encoded_is_decoded(n: int, count: int, k: int | None, prompt_k: int | None) -> None:
    found = decode(body(n, count, k, prompt_k), n, k, prompt_k, PROMPT)
    assert [choice.text for choice in found.choices] == [f"text {i} ü" for i in range(n)]
    for i, choice in enumerate(found.choices):
        sent, columns = rows(count, k, i), choice.tokens
        assert columns.token_ids.tolist() == sent.ids[:, 0].tolist()
        assert columns.prompt_ids.tolist() == PROMPT.tolist()
        if k is None:
            assert np.isnan(columns.sampled_logprob).all()
            continue
        assert columns.topk_ids.tolist() == sent.ids[:, 1:].tolist()
        assert columns.topk_logprobs.tolist() == sent.logprobs[:, 1:].tolist()
        assert columns.sampled_logprob.tolist() == sent.logprobs[:, 0].tolist()
        assert columns.sampled_rank.tolist() == sent.ranks.tolist()
    assert (found.prompt is None) == (prompt_k is None)
    if found.prompt is not None and prompt_k is not None:
        assert found.prompt.token_ids.tolist() == rows(2, prompt_k, 99).ids[:, 0].tolist()


def read(content: bytes) -> CompactAnswer:
    return decode(content, 2, 3, 1, PROMPT)


@given(st.binary(max_size=300))
def test_bytes_that_are_none_of_ours_are_malformed(content: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        read(content)


@given(at=st.integers(0), value=st.integers(0, 255))
def test_a_changed_byte_is_malformed_or_another_answer(at: int, value: int) -> None:
    content = bytearray(body(2, 3, 3, 1))
    content[at % len(content)] = value
    try:
        found = read(bytes(content))
    except MalformedAnswer:
        return
    assert len(found.choices) <= 2
    assert all(len(choice.tokens) <= 3 and choice.tokens.k == 3 for choice in found.choices)


@given(st.integers(0))
def test_an_answer_that_is_cut_or_goes_on_is_malformed(at: int) -> None:
    content = body(2, 3, 3, 1)
    for wrong in (content[: at % len(content)], content + b"\0"):
        with pytest.raises(MalformedAnswer):
            read(wrong)


@given(header=JSON, rest=st.binary(max_size=64))
def test_any_header_is_malformed_or_read(header: Any, rest: bytes) -> None:
    head = json.dumps(header, allow_nan=True).encode()
    with pytest.raises(MalformedAnswer):
        read(PREFIX.pack(MAGIC, 1, 0, len(head)) + head + rest)


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "tokens": 2**62, "text_bytes": 0, "finish_reason": "stop"},
        {"index": 0, "tokens": 0, "text_bytes": 2**62, "finish_reason": "stop"},
        {"index": 2, "tokens": 0, "text_bytes": 0, "finish_reason": "stop"},
        {"index": -1, "tokens": 0, "text_bytes": 0, "finish_reason": "stop"},
        {"index": True, "tokens": 0, "text_bytes": 0, "finish_reason": "stop"},
        {"index": 0, "tokens": -1, "text_bytes": 0, "finish_reason": "stop"},
        {"index": 0, "tokens": 1.0, "text_bytes": 0, "finish_reason": "stop"},
        {"index": 0, "tokens": 0, "text_bytes": 0, "finish_reason": None},
        {"index": 0, "tokens": 0, "text_bytes": 0, "finish_reason": "stop", "stop_reason": [1]},
        None,
    ],
)
def test_a_choice_that_lies_is_malformed(choice: Any) -> None:
    head = json.dumps({"k": 3, "prompt_k": None, "prompt_rows": 0, "choices": [choice]}).encode()
    with pytest.raises(MalformedAnswer):
        decode(PREFIX.pack(MAGIC, 1, 0, len(head)) + head, 2, 3, None, PROMPT)


def test_two_choices_of_one_number_and_another_version_are_malformed() -> None:
    twice = encode({"k": 0, "prompt_k": None}, [Choice(0, rows(1, 0), "", "stop")] * 2)
    with pytest.raises(MalformedAnswer, match="alike"):
        decode(twice, 2, 0, None, PROMPT)
    with pytest.raises(MalformedAnswer, match="version 2"):
        decode(PREFIX.pack(MAGIC, 2, 0, 0), 2, 0, None, PROMPT)


@pytest.mark.parametrize("wrong", [float("nan"), 0.5])
def test_logprobs_that_are_none_are_malformed(wrong: float) -> None:
    content = body(1, 3, 2)
    spoilt = content[: -len(b"text 0 ") - 2 - 3 * 4 - 4] + struct.pack("<f", wrong)
    spoilt += content[len(spoilt) :]
    with pytest.raises(MalformedAnswer, match="logprob"):
        decode(spoilt, 1, 2, None, PROMPT)


def test_minus_infinity_is_an_absent_candidate() -> None:
    sent = Rows(
        np.array([[7, 7, 8]], np.int32), np.array([[-0.5, -0.5, -np.inf]], np.float32), np.ones(1, np.int32)
    )
    found = decode(encode({"k": 2, "prompt_k": None}, [Choice(0, sent, "", "stop")]), 1, 2, None, PROMPT)
    assert found.choices[0].tokens.topk_ids.tolist() == [[7, -1]]


def test_flat_logprobs_of_another_shape_are_refused() -> None:
    flat = Namespace(token_ids=[1, 2, 3, 4], logprobs=[-1.0] * 4, ranks=[1] * 4)
    assert rows_of([1, 3], flat, 1).ids.tolist() == [[1, 2], [3, 4]]
    for tokens, k in (([1, 3], 2), ([1], 1), ([2, 3], 1)):
        with pytest.raises(ValueError, match="vLLM"):
            rows_of(tokens, flat, k)
    with pytest.raises(ValueError, match="vLLM"):
        rows_of([1], None, 0)


@given(JSON | st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON | st.lists(st.integers())))
def test_any_request_is_refused_or_within_bounds(value: Any) -> None:
    try:
        asked = read_request(json.dumps(value).encode(), 16)
    except Refused:
        return
    assert 1 <= len(asked["prompt_token_ids"]) <= 16
    assert set(asked) <= set(FIELDS)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("top_p", 1.1),
        ("n", 0),
        ("n", 1.0),
        ("n", True),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("seed", 2**63),
        ("priority", -(2**63) - 1),
        ("stop_token_ids", [1, "2"]),
        ("stop", [""]),
        ("stop", [1]),
        ("stop", ["a"] * 65),
        ("stop", "a"),
        ("stop", ["\ud800"]),
        ("model", "\udfff"),
        ("structured_outputs", {"json": {"const": "\ud800"}}),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", list(range(5000))),
        ("prompt_token_ids", []),
        ("prompt_token_ids", [1] * 17),
        ("prompt_token_ids", [2**31]),
        ("request_id", "a\nb"),
        ("request_id", "a" * 257),
        ("structured_outputs", {"jsn": {}}),
        ("structured_outputs", {"_backend": "outlines"}),
        ("top_logprobs", -1),
        ("prompt", "text"),
    ],
)
def test_a_field_out_of_bounds_is_named(field: str, wrong: Any) -> None:
    with pytest.raises(Refused) as refused:
        read_request(json.dumps({"prompt_token_ids": [1], field: wrong}).encode(), 16)
    assert refused.value.parameter == field


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_a_body_that_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(Refused):
        read_request(content, 16)


class Server:
    """What the middleware finds in a vLLM server, without an engine: all that is needed until one is asked."""

    def __init__(self, api_key: list[str] | None) -> None:
        self.state = Namespace(
            args=Namespace(api_key=api_key, served_model_name=["m"], model="/m"),
            engine_client=Namespace(model_config=Namespace(max_model_len=16)),
        )
        self.route = CompactRoute(self.inner)

    async def inner(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.route({**scope, "app": self}, receive, send)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def talk() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self), base_url="http://vllm"
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(talk())


def test_other_paths_are_handed_on() -> None:
    server = Server(["right"])
    for path in ("/v1/completions", "/retort/v1/generate/", "/retort/v1", "/"):
        assert server.call("POST", path).status_code == 418


@pytest.mark.parametrize("path", [GENERATE, INFO])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic right"},
        {"Authorization": "right"},
    ],
)
def test_without_the_key_nobody_is_let_in(path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = Server(["right", "also"]).call(method, path, headers=headers, content=b"x" * 10_000_000)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == 401


@pytest.mark.parametrize("key", ["right", "also"])
def test_any_of_the_keys_opens(key: str) -> None:
    answer = Server(["right", "also"]).call(
        "POST", GENERATE, headers={"Authorization": f"bearer {key}"}, content=b"{}"
    )
    assert answer.status_code == 400


def test_keys_that_cannot_be_known_let_nobody_in() -> None:
    server = Server(None)
    del server.state.args
    assert server.call("POST", GENERATE, content=b"{}").status_code == 503


def test_sizes_methods_and_models_are_judged_before_the_engine_is_asked() -> None:
    server = Server(None)  # no key: open, as vLLM's own routes are
    assert server.call("GET", GENERATE).status_code == 405
    assert server.call("POST", INFO).status_code == 405
    assert server.call("POST", GENERATE, content=b" " * 1_048_832).status_code == 400
    assert server.call("POST", GENERATE, content=b" " * 1_048_833).status_code == 413

    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    assert server.call("POST", GENERATE, content=endless()).status_code == 413
    assert server.call("POST", GENERATE, json={"prompt_token_ids": [1], "model": "x"}).status_code == 404
