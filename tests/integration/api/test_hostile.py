"""Whatever is sent, the answer is a problem that says what is wrong: never a fault of ours, never a hang."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from .conftest import NDJSON, Made

JSON_TYPE = {"Content-Type": "application/json"}
DEEP = b"[" * 100_000
DEEP_OBJECT = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
SURROGATE = r'"\ud800"'
# Values that a field may be given, as JSON text.
ODD = (
    *("null", "true", "0", "-1", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" * 5000, "1.5", '""'),
    *(SURROGATE, r'"\u0000"', '"' + "x" * 100_000 + '"', "[]", "{}", "[[]]", '{"": ""}', '{"\\ud800": 1}'),
    *(
        "[" * 500 + "]" * 500,
        '{"$ref": "#"}',
        '"\\u202e\\u0000\\uffff"',
        '"; DROP TABLE job; --"',
        "18446744073709551616",
    ),
)
NAMES = (
    "%00",
    "%ff",
    "%2e%2e",
    "%2F",
    "%0d%0aX-Evil:%201",
    "'",
    "%25s",
    "x" * 5000,
    "%F0%9F%98%80",
    "job_1%00",
    "{}",
)


def fields(api: TestClient) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, an example body) of every operation that takes JSON."""
    document = api.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                example = next(iter(content["examples"].values()))["value"]
                yield method.upper(), path.replace("{", "").replace("}", ""), example


def check(answer: Any, what: object) -> None:
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:500]}"
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", what
        assert answer.json()["detail"], what


def test_bodies_that_are_no_json(api: TestClient) -> None:
    bodies = (
        b"",
        b"{",
        b"\xff\xfe",
        b"\x00",
        DEEP,
        DEEP_OBJECT,
        b'"text"',
        b"null",
        b"[]",
        b"1" * 10_000,
        b'{"a":1,"a":2}',
    )
    for method, path, _ in fields(api):
        for body in bodies:
            check(api.request(method, path, content=body, headers=JSON_TYPE), (method, path, body[:40]))


@pytest.mark.slow
def test_every_field_with_every_odd_value(api: TestClient, made: Made) -> None:
    """On things that are there, so that what is wrong gets as far as it can."""
    ids = {
        "prompt_set": made.prompt_set()["id"],
        "prompt_set_id": made.prompt_set(["x"], seal=False)["id"],
        "teacher": made.teacher()["name"],
    }
    ids["job_id"] = made.job(prompt_set=ids["prompt_set"], teachers=[ids["teacher"]])["id"]
    number = 0
    for method, path, example in fields(api):
        for step in ids:
            path = path.replace(f"/{step}", f"/{ids[step]}")
        for name in example:
            for odd in ODD:
                number += 1
                body = {key: json.dumps(value) for key, value in example.items()} | {name: odd}
                if "name" in body and name != "name":
                    body["name"] = json.dumps(f"n{number}")
                if "prompt_set" in body and name != "prompt_set":
                    body["prompt_set"] = json.dumps(ids["prompt_set"])
                text = "{" + ", ".join(f'"{key}": {value}' for key, value in body.items()) + "}"
                answer = api.request(method, path, content=text.encode(), headers=JSON_TYPE)
                check(answer, (method, path, name, odd[:60]))
    for path in ("/v1/jobs", "/v1/prompt-sets", "/v1/teachers", "/v1/exports"):
        assert api.get(path, params={"limit": 1000}).status_code == 200, "what was taken can be read again"


@pytest.mark.slow
def test_paths_queries_and_headers(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for name in NAMES:
                parts = [name if part.startswith("{") else part for part in path.split("/")]
                check(api.request(method.upper(), "/".join(parts), json={}), (method, path, name))
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    for odd in (
                        "",
                        "-1",
                        "9" * 5000,
                        "NaN",
                        "\x00",
                        "é",
                        "true",
                        "[]",
                        "' OR 1=1 --",
                        "%",
                        "x" * 10_000,
                    ):
                        query = {parameter["name"]: odd}
                        address = path.replace("{", "").replace("}", "")
                        if address.endswith("/events"):
                            continue
                        check(
                            api.request(method.upper(), address, params=query, json={}), (method, path, query)
                        )
    for headers in (
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 100_000},
        {"Authorization": "Basic cm9vdDpyb290"},
        {"Authorization": "Bearer rtk_\x80\xff"},
        {"Idempotency-Key": "a b"},
        {"Idempotency-Key": "k" * 256},
        {"Idempotency-Key": "\x80"},
        {"X-Request-ID": "a\tb" * 100},
        {"Content-Type": "application/json; charset=utf-7"},
        {"Content-Encoding": "br"},
        {"Accept": "text/html"},
    ):
        raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        check(api.post("/v1/prompt-sets", content=b'{"name": "x"}', headers=JSON_TYPE | raw), headers)  # type: ignore[operator]


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_streams(api: TestClient, made: Made, encoding: str) -> None:
    rows = (
        *(
            b"",
            b"\n" * 100_000,
            b"\x00" * 10_000,
            b"\r\n\r\n",
            b"\xef\xbb\xbf",
            b"\xff" * 1000,
            DEEP,
            DEEP_OBJECT,
        ),
        *(b'{"prompt": "' + b"x" * (5 << 20) + b'"}', b'{"prompt":' * 1000, b'"\\ud800"\n', b'"\\u0000"\n'),
        b"\n".join(
            b'{"prompt": "a", "license": "%s"}' % (b"(" * n + b"MIT" + b")" * n) for n in (1, 100, 200)
        ),
        b'{"prompt": "a", "metadata": {"\\u0000": "\\u0000"}, "source": "\\u0000"}\n',
        b'{"prompt": "a", "response_schema": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}\n",
        b'{"prompt": "a", "parameters": {"seed": 99999999999999999999999999}}\n{"prompt": "a", "reference": 1e999}\n',
    )
    set_id = made.prompt_set([], seal=False)["id"]
    path = f"/v1/prompt-sets/{set_id}/prompts"
    headers = NDJSON | ({"Content-Encoding": encoding} if encoding else {})
    for row in rows:
        row = b'"before"\n' + row + b'\n"after"'
        content = gzip.compress(row) if encoding else row
        answer = api.post(path, content=content, headers=headers)
        assert answer.status_code == 200, (row[:60], answer.text[:300])
        check(api.get(f"/v1/prompt-sets/{set_id}/errors", params={"limit": 1000}), row[:60])
    kept = [one["messages"][0]["content"] for one in api.get(path, params={"limit": 1000}).json()["items"]]
    assert kept.count("before") == kept.count("after") == len(rows), "what stands beside a bad row goes in"
    assert api.post(f"/v1/prompt-sets/{set_id}/seal").json()["sealed"]


ROWS = (
    (b'{"prompt": "a", "prompt": "b"}', "the name 'prompt' stands twice in one object"),
    (b'{"prompt": "a", "metadata": {"n": 99999999999999999999}}', "does not fit into 64 bits"),
    (b'"\\ud800"', "not JSON: no low surrogate in string"),
    ('"\u00e9"'.encode("latin-1"), "not JSON: str is not valid UTF-8"),
    (b"no\x00thing", "not JSON"),
    (b'{"prompt": "a", "source": "\\u0000"}', "may not contain the character U+0000"),
    (b'{"prompt": "a", "metadata": {"n": 1e999}}', "number is infinity"),
    (b'{"prompt": "a", "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301, "metadata: nested too deeply"),
    (b'{"prompt": "a", "metadata": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001, "depth limit exceeded"),
    (b'{"prompt": "' + b"x" * (4 << 20) + b'"}', "the row is longer than 4,194,304 bytes"),
)


def test_a_row_says_why_it_is_none(api: TestClient, made: Made) -> None:
    set_id = made.prompt_set([], seal=False)["id"]
    for row, reason in ROWS:
        content = b'"before"\n' + row + b'\n"after"\n'
        answer = api.post(f"/v1/prompt-sets/{set_id}/prompts", content=content, headers=NDJSON).json()
        assert (answer["n_added"], [error["line"] for error in answer["errors"]]) == (2, [2])
        assert reason in answer["errors"][0]["reason"]
        assert len(answer["errors"][0]["reason"]) < 300


BODIES = (
    (b'{"name": "\xe9"}', 400, "the body is not JSON in UTF-8"),
    (DEEP, 400, "the body is nested too deeply"),
    (b'{"name": "\\ud800"}', 422, "#/name"),
    (b'{"name": "a\\u0000"}', 422, "#/name"),
    (b'{"name": ', 422, "not JSON"),
)


def test_a_body_says_why_it_is_refused(api: TestClient, made: Made) -> None:
    for body, status, detail in BODIES:
        answer = api.post("/v1/prompt-sets", content=body, headers=JSON_TYPE)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text
    set_id = made.prompt_set([], seal=False)["id"]
    body = b'{"prompts": ["a"], "prompts": ["b"]}'
    answer = api.post(f"/v1/prompt-sets/{set_id}/prompts", content=body, headers=JSON_TYPE)
    assert (answer.status_code, "'prompts' stands twice" in answer.json()["detail"]) == (422, True)


def test_no_body_is_read_as_less_than_it_says(api: TestClient) -> None:
    """Of two equal names a parser keeps the last: on every route that takes JSON, at any depth."""
    n_routes = 0
    for method, path, example in fields(api):
        name = next(iter(example))
        for body, twice in (
            (f'{{"{name}": 0, ' + json.dumps(example)[1:], name),
            ('{"x": [{"deep": 1, "d\\u0065ep": 2}], ' + json.dumps(example)[1:], "deep"),
        ):
            answer = api.request(method, path, content=body.encode(), headers=JSON_TYPE)
            assert (answer.status_code, f"{twice!r} stands twice" in answer.json()["detail"]) == (
                422,
                True,
            ), (
                path,
                answer.text,
            )
        n_routes += 1
    assert n_routes >= 12


def test_a_body_of_another_type_is_told_how_to_be_sent(api: TestClient) -> None:
    """What curl sends with `-d` alone, and what comes without a type."""
    for media_type in ("application/x-www-form-urlencoded", "text/plain; charset=utf-8", ""):
        for method, path, example in fields(api):
            answer = api.request(
                method, path, content=json.dumps(example).encode(), headers={"Content-Type": media_type}
            )
            assert answer.status_code == 415, (path, answer.text)
            assert "application/json" in answer.json()["detail"]
    taken = api.post(
        "/v1/prompt-sets",
        content=b'{"name": "x"}',
        headers={"Content-Type": "Application/vnd.me+json ; charset=utf-8"},
    )
    assert taken.status_code == 201, taken.text


def test_a_bomb_stays_small(api: TestClient, made: Made) -> None:
    """Of a few kilobytes of gzip: a body is bounded as it unfolds, a stream row by row."""
    set_id = made.prompt_set([], seal=False)["id"]
    bomb = gzip.compress(b" " * (65 << 20), compresslevel=9)
    headers = {"Content-Encoding": "gzip"}
    body = api.post(f"/v1/prompt-sets/{set_id}/prompts", content=bomb, headers=JSON_TYPE | headers)
    assert body.status_code == 413
    stream = api.post(f"/v1/prompt-sets/{set_id}/prompts", content=bomb, headers=NDJSON | headers)
    assert (stream.status_code, stream.json()["n_rejected"]) == (200, 1)
