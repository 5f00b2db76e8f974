"""Appending prompts: every row is judged alone, numbering has no gaps, and nothing stands twice."""

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.db.session import transaction
from app.domain.fingerprints import chained
from app.domain.prompts import MAX_ROW_BYTES, parse_value, stored
from app.services import appends
from app.settings import Settings

from .conftest import NDJSON, Made, lines
from .server import Server, serving


def new_set(api: TestClient) -> str:
    made: str = api.post("/v1/prompt-sets", json={"name": "s"}).json()["id"]
    return made


def send(api: Any, set_id: str, body: Any, headers: dict[str, str] | None = None, **params: Any) -> Any:
    return api.post(
        f"/v1/prompt-sets/{set_id}/prompts", content=body, params=params, headers=NDJSON | (headers or {})
    )


def numbers(api: TestClient, set_id: str) -> list[int]:
    found: list[int] = []
    cursor = None
    while True:
        page = api.get(
            f"/v1/prompt-sets/{set_id}/prompts",
            params={"limit": 1000} | ({"cursor": cursor} if cursor else {}),
        )
        found += [prompt["number"] for prompt in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return found


def test_json(api: TestClient) -> None:
    set_id = new_set(api)
    rows = [
        "a bare string",
        {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "license": "cc0-1.0",
        },
        {"prompt": "p", "metadata": {"a": [1, None]}, "reference": 4, "custom_id": "c", "source": "s"},
        {"prompt": "p", "parameters": {"temperature": 0, "max_tokens": 3}, "teacher": "t"},
        {"prompt": "p", "tools": [{"type": "function"}], "response_schema": {"type": "object"}},
    ]
    made = api.post(f"/v1/prompt-sets/{set_id}/prompts", json={"prompts": rows}).json()
    assert (made["n_added"], made["n_rejected"], made["through_line"]) == (5, 0, 5)
    assert made["n_license_assumed"] == 4
    prompts = api.get(f"/v1/prompt-sets/{set_id}/prompts").json()["items"]
    assert [prompt["number"] for prompt in prompts] == [0, 1, 2, 3, 4]
    assert prompts[0]["messages"] == [{"role": "user", "content": "a bare string"}]
    assert prompts[0]["license"] == "NOASSERTION"
    assert (prompts[1]["license"], prompts[1]["license_assumed"]) == ("CC0-1.0", False)
    assert prompts[2]["metadata"] == {"a": [1, None]}
    assert (prompts[2]["reference"], prompts[2]["custom_id"], prompts[2]["source"]) == (4, "c", "s")
    assert prompts[3]["parameters"] == {"temperature": 0.0, "max_tokens": 3}
    assert prompts[4]["response_schema"] == {"type": "object"}


def test_lines_that_do_not_parse_are_reported_and_the_rest_goes_in(api: TestClient) -> None:
    set_id = new_set(api)
    deep = b'{"prompt": "p", "metadata": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}"
    body = b"\xef\xbb\xbf" + lines(
        "good",
        b"",
        b"{not json",
        {"prompt": "p", "license": "my own"},
        {"prompt": "p", "typo": 1},
        17,
        {"prompt": "p", "source": "a\x00b"},
        deep,
        b'"\xff\xfe"',
        {"prompt": "also good"},
    ).replace(b"\n", b"\r\n").rstrip(b"\r\n")
    made = send(api, set_id, body).json()
    assert (made["n_added"], made["n_rejected"], made["through_line"]) == (2, 7, 10)
    errors = {error["line"]: error for error in api.get(f"/v1/prompt-sets/{set_id}/errors").json()["items"]}
    assert sorted(errors) == [3, 4, 5, 6, 7, 8, 9]
    assert errors[3]["kind"] == "invalid-row"
    assert "not JSON" in errors[3]["reason"]
    assert errors[3]["excerpt"].startswith("{not json")
    assert errors[4]["kind"] == "invalid-license"
    assert "typo: unknown field" in errors[5]["reason"]
    assert "not a number" in errors[6]["reason"]
    assert "U+0000" in errors[7]["reason"]
    assert numbers(api, set_id) == [0, 1]
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["n_errors"] == 7


def test_errors_come_in_pages(api: TestClient) -> None:
    set_id = new_set(api)
    send(api, set_id, b"x\n" * 25)
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": 10} | ({"cursor": cursor} if cursor else {})
        page = api.get(f"/v1/prompt-sets/{set_id}/errors", params=params).json()
        seen += [error["line"] for error in page["items"]]
        cursor = page["next_cursor"]
    assert seen == list(range(1, 26))


def test_strict_takes_all_or_nothing(api: TestClient) -> None:
    set_id = new_set(api)
    answer = send(api, set_id, lines("a", b"{", "b", b"["), strict=True)
    assert answer.status_code == 422
    assert [error["line"] for error in answer.json()["errors"]] == [2, 4]
    found = api.get(f"/v1/prompt-sets/{set_id}").json()
    assert (found["n_prompts"], found["n_errors"]) == (0, 0)
    answer = send(api, set_id, lines(*(f"prompt {n}" for n in range(4500))), strict=True, seal=True)
    assert (answer.json()["n_added"], answer.json()["prompt_set"]["sealed"]) == (4500, True)
    assert numbers(api, set_id) == list(range(4500))


def test_the_hash_is_of_the_prompts_in_order_and_finds_an_equal_set(api: TestClient, made: Made) -> None:
    rows = ["one", {"prompt": "two", "license": "CC0-1.0"}]
    first, second = made.prompt_set(rows), made.prompt_set(rows)
    expected = bytes(32)
    for row in rows:
        expected = chained(expected, stored(parse_value(row), None).content_hash)
    assert first["content_hash"] == second["content_hash"] == expected.hex()
    assert made.prompt_set(rows[::-1])["content_hash"] != expected.hex()
    found = api.get("/v1/prompt-sets", params={"content_hash": expected.hex(), "sealed": True}).json()[
        "items"
    ]
    assert {one["id"] for one in found} == {first["id"], second["id"]}
    assert api.get("/v1/prompt-sets", params={"name": "no such name"}).json()["items"] == []


def test_in_pieces_or_in_one_the_hash_is_the_same(api: TestClient, made: Made) -> None:
    whole = made.prompt_set(["a", "b", "c", "d"])
    set_id = new_set(api)
    for rows in (["a"], ["b", "c"], ["d"]):
        send(api, set_id, lines(*rows))
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["content_hash"] == whole["content_hash"]


def test_a_sealed_set_takes_nothing_more(api: TestClient, made: Made) -> None:
    sealed = made.prompt_set()
    answer = send(api, sealed["id"], lines("more"))
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:retort:problem:prompt-set-sealed"
    again = api.post(f"/v1/prompt-sets/{sealed['id']}/seal").json()
    assert again == api.get(f"/v1/prompt-sets/{sealed['id']}").json()


def test_the_projects_default_licence(api: TestClient, made: Made) -> None:
    api.patch("/v1/project", json={"default_license": "CC-BY-4.0"})
    sealed = made.prompt_set(["a", {"prompt": "b", "license": "MIT"}])
    prompts = api.get(f"/v1/prompt-sets/{sealed['id']}/prompts").json()["items"]
    assert [(prompt["license"], prompt["license_assumed"]) for prompt in prompts] == [
        ("CC-BY-4.0", True),
        ("MIT", False),
    ]
    assert sealed["n_license_assumed"] == 1


@pytest.mark.parametrize("pieces", [1, 3])
def test_gzip(api: TestClient, pieces: int) -> None:
    set_id = new_set(api)
    body = b"".join(gzip.compress(lines(*(f"prompt {n} {p}" for n in range(3000)))) for p in range(pieces))
    answer = send(api, set_id, body, {"Content-Encoding": "gzip"})
    assert answer.json()["n_added"] == 3000 * pieces
    answer = api.post(
        f"/v1/prompt-sets/{set_id}/prompts",
        content=gzip.compress(json.dumps({"prompts": ["j"]}).encode()),
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
    )
    assert answer.json()["n_added"] == 1


def test_gzip_that_is_cut_or_is_none(api: TestClient) -> None:
    set_id = new_set(api)
    whole = gzip.compress(lines(*(f"prompt {n}" for n in range(3000))))
    cut = send(api, set_id, whole[: len(whole) // 2], {"Content-Encoding": "gzip"}, seal=True)
    assert (cut.status_code, "cut off" in cut.json()["detail"]) == (422, True)
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["sealed"] is False
    wrong = send(api, set_id, b"not gzip", {"Content-Encoding": "gzip"})
    assert (wrong.status_code, "not gzip" in wrong.json()["detail"]) == (422, True)
    assert send(api, set_id, b"x", {"Content-Encoding": "br"}).status_code == 415


def test_other_media_types_are_refused(api: TestClient) -> None:
    set_id = new_set(api)
    path = f"/v1/prompt-sets/{set_id}/prompts"
    assert api.post(path, content=b"x", headers={"Content-Type": "text/csv"}).status_code == 415
    assert api.post(path, content=b"x").status_code == 415
    for body in ("[]", "{}", '{"prompts": "x"}', "{", '{"prompts": [], "strict": true}'):
        answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, body
        assert answer.json()["errors"][0]["pointer"].startswith("#")


def test_a_row_that_is_too_long_is_an_error_and_the_next_one_is_not(api: TestClient) -> None:
    set_id = new_set(api)
    body = lines("a", json.dumps({"prompt": "x" * (MAX_ROW_BYTES + 10)}).encode(), "b")
    made = send(api, set_id, body).json()
    assert (made["n_added"], made["n_rejected"]) == (2, 1)
    assert made["errors"][0]["line"] == 2
    assert "longer than" in made["errors"][0]["reason"]


def test_appends_at_once_number_without_gaps_and_doubles(api: TestClient) -> None:
    set_id = new_set(api)

    def append(part: int) -> None:
        rows = [f"{part}-{row}" if row % 7 else b"{" for row in range(2500)]
        assert send(api, set_id, lines(*rows)).status_code == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    good = 4 * sum(1 for row in range(2500) if row % 7)
    found = api.get(f"/v1/prompt-sets/{set_id}").json()
    assert (found["n_prompts"], found["n_errors"]) == (good, 10_000 - good)
    assert numbers(api, set_id) == list(range(good))


def test_the_hash_of_appends_at_once_is_of_the_order_that_stands(app: FastAPI, api: TestClient) -> None:
    set_id = new_set(api)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: send(api, set_id, lines(*(f"{part}-{n}" for n in range(2500)))), range(4)))
    expected = bytes(32)
    with app.state.resources.engine.connect() as connection:
        for row in connection.execute(text("SELECT content_hash FROM prompt ORDER BY number")):
            expected = chained(expected, row.content_hash)
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["content_hash"] == expected.hex()


def test_an_append_with_a_key_is_made_once(api: TestClient) -> None:
    set_id = new_set(api)
    headers = {"Idempotency-Key": "up-1"}
    first = send(api, set_id, lines("a", "b"), headers)
    again = send(api, set_id, lines("a", "b"), headers)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert send(api, set_id, lines("a", "c"), headers).status_code == 409
    assert send(api, set_id, lines("a", "b"), headers, seal=True).status_code == 409
    path = f"/v1/prompt-sets/{set_id}/prompts"
    for _ in range(2):
        assert api.post(path, json={"prompts": ["c"]}, headers={"Idempotency-Key": "up-2"}).status_code == 200
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["n_prompts"] == 3


def test_a_refused_append_gives_its_key_back(api: TestClient) -> None:
    set_id = new_set(api)
    headers = {"Idempotency-Key": "up-1"}
    assert send(api, set_id, lines("a", b"{"), headers, strict=True).status_code == 422
    assert send(api, set_id, lines("a", "b"), headers, strict=True).status_code == 200
    assert api.get(f"/v1/prompt-sets/{set_id}").json()["n_prompts"] == 2


def test_by_hand_from_a_line(api: TestClient) -> None:
    set_id = new_set(api)
    send(api, set_id, lines("a", "b"))
    made = send(api, set_id, lines("a", "b", "c", "d"), from_line=3).json()
    assert (made["n_added"], made["through_line"]) == (2, 4)
    assert numbers(api, set_id) == [0, 1, 2, 3]


def rows_until(stop: int, every: int = 2000) -> Iterator[bytes]:
    for start in range(0, stop, every):
        yield lines(*(f"prompt {n}" for n in range(start, min(stop, start + every))))


def cut_off_upload(
    server: Server, key: str, set_id: str, headers: dict[str, str], n_rows: int
) -> dict[str, Any]:
    """Send chunks of a request that promises more, and drop the connection when most of them are stored."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = [
            f"POST /v1/prompt-sets/{set_id}/prompts?seal=true HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {key}",
            "Content-Type: application/x-ndjson",
            "Transfer-Encoding: chunked",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        for piece in rows_until(n_rows):
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        return wait_for(server.client, set_id, n_rows - 2000)


def wait_for(client: httpx.Client, set_id: str, at_least: int) -> dict[str, Any]:
    for _ in range(1200):
        found: dict[str, Any] = client.get(f"/v1/prompt-sets/{set_id}").json()
        if found["n_prompts"] >= at_least:
            return found
        time.sleep(0.05)
    raise AssertionError(f"only {found['n_prompts']} prompts arrived")


def test_after_a_cut_connection_the_same_key_goes_on(
    api: TestClient, settings: Settings, tmp_path: Path
) -> None:
    key = settings.key_file.read_text().strip()
    set_id = new_set(api)
    headers = {"Idempotency-Key": "upload"}
    with serving(settings, tmp_path, key) as server:
        kept = cut_off_upload(server, key, set_id, headers, 9000)
        assert kept["sealed"] is False
        answer = send(server.client, set_id, b"".join(rows_until(10_000)), headers, seal=True)
        for _ in range(600):
            if answer.status_code != 409:  # the server notices the cut a moment later
                break
            time.sleep(0.1)
            answer = send(server.client, set_id, b"".join(rows_until(10_000)), headers, seal=True)
        assert answer.status_code == 200, answer.text
        made = answer.json()
        left = re.search(
            r'retort_http_requests_total{.*status="499"} 1.0', server.client.get("/metrics").text
        )
        assert left is not None
    assert (made["n_added"], made["through_line"]) == (10_000, 10_000)
    assert (made["prompt_set"]["n_prompts"], made["prompt_set"]["sealed"]) == (10_000, True)


def let_pass(engine: Engine, seconds: float) -> None:
    """Unfinished requests have been silent for so much longer."""
    with transaction(engine) as connection:
        connection.execute(
            text("UPDATE idempotent_request SET created_at = created_at - :seconds"), {"seconds": seconds}
        )


def test_after_a_killed_server_the_same_key_goes_on(
    app: FastAPI, api: TestClient, settings: Settings, tmp_path: Path
) -> None:
    key = settings.key_file.read_text().strip()
    set_id = new_set(api)
    headers = {"Idempotency-Key": "upload"}
    with serving(settings, tmp_path, key) as server:

        def body() -> Iterator[bytes]:
            yield from rows_until(6000)
            wait_for(server.client, set_id, 4000)
            server.process.kill()
            server.process.wait()
            yield from rows_until(6000)

        other = httpx.Client(base_url=server.client.base_url, headers=server.client.headers)
        with other, pytest.raises(httpx.TransportError):
            send(other, set_id, body(), headers, seal=True)
    kept = api.get(f"/v1/prompt-sets/{set_id}").json()["n_prompts"]
    assert 4000 <= kept <= 6000
    whole = b"".join(rows_until(10_000))
    early = send(api, set_id, whole, headers, seal=True)
    assert (early.status_code, early.headers["retry-after"]) == (409, "2")  # perhaps it still runs
    let_pass(app.state.resources.engine, appends.SILENT_SECONDS + 1)
    made = send(api, set_id, whole, headers, seal=True).json()
    assert (made["n_added"], made["prompt_set"]["n_prompts"]) == (10_000, 10_000)
    assert numbers(api, set_id) == list(range(10_000))


def test_a_request_that_was_taken_over_writes_no_more(app: FastAPI, api: TestClient) -> None:
    set_id = new_set(api)
    engine, project = app.state.resources.engine, api.get("/v1/project").json()["id"]
    ticket = appends.Ticket("k", b"h" * 32)
    slow = appends.begin(engine, project, "a key", set_id, ticket)
    assert isinstance(slow, appends.Append)
    slow.add([appends.RawRow(1, b'"a"')])
    let_pass(engine, appends.SILENT_SECONDS + 1)
    fast = appends.begin(engine, project, "a key", set_id, ticket)
    assert isinstance(fast, appends.Append)
    assert fast.progress.through_line == 1
    with pytest.raises(Exception, match="taken over"):
        slow.add([appends.RawRow(2, b'"b"')])
    fast.add([appends.RawRow(1, b'"a"'), appends.RawRow(2, b'"b"')])
    with pytest.raises(Exception, match="taken over"):
        slow.finish(seal=False)
    assert fast.finish(seal=True).n_added == 2
    assert numbers(api, set_id) == [0, 1]


def test_a_stream_of_any_size_takes_bounded_memory(
    api: TestClient, settings: Settings, tmp_path: Path
) -> None:
    """195 MB of lines, gzip to 1 MB, some of 3 MB and one endless, through a server that grows by far less."""
    key = settings.key_file.read_text().strip()
    set_id = new_set(api)
    wide = json.dumps({"prompt": "x" * 3_000_000}).encode() + b"\n"
    bomb = gzip.compress(wide * 45 + b"y" * 60_000_000 + b"\n" + lines("last"), 1)
    with serving(settings, tmp_path, key) as server:
        send(server.client, set_id, lines("warm", "up"))
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        peak = before
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(send, server.client, set_id, bomb, {"Content-Encoding": "gzip"})
            while not sending.done():
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.01)
        made = sending.result().json()
    assert (made["n_added"], made["n_rejected"]) == (46, 1)
    assert peak - before < 150_000_000  # 64 MB of it are SQLite's own cache
