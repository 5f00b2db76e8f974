"""The OpenAPI document, and the pages that show it without the internet."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

from .conftest import Made

METHODS = {"get", "post", "put", "patch", "delete"}
OPEN = {"read_health", "read_readiness", "read_metrics"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def test_every_operation_is_told_in_full(document: dict[str, Any]) -> None:
    found = list(operations(document))
    assert len(found) > 25
    tags = {tag["name"] for tag in document["tags"]}
    for path, method, operation in found:
        where = f"{method} {path}"
        assert operation.get("summary"), where
        assert operation.get("description"), where
        assert set(operation["tags"]) <= tags, where
        assert operation["tags"], where
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content.get("examples"), where
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), f"{where}: {parameter['name']}"
        for status in ("422", "default"):
            assert "application/problem+json" in operation["responses"][status]["content"], where


def test_operation_ids_are_neat_and_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", one) for one in ids), ids


def test_every_operation_but_the_operators_needs_a_key(document: dict[str, Any]) -> None:
    (scheme,) = document["components"]["securitySchemes"].items()
    assert scheme[0] == "key"
    assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
    for path, method, operation in operations(document):
        secured = operation.get("security") == [{"key": []}]
        assert secured == (operation["operationId"] not in OPEN), f"{method} {path}"
        assert ("401" in operation["responses"]) == secured


def test_what_creates_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        creates = "201" in operation["responses"] or operation["operationId"] == "append_prompts"
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        assert ("Idempotency-Key" in names) == creates, f"{method} {path}"


def test_every_list_comes_in_pages(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method == "get" and "cursor" in {p["name"] for p in operation.get("parameters", ())}:
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            page = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert set(page["properties"]) == {"items", "next_cursor"}, path


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        prefix, _, name = reference.rpartition("/")
        assert prefix == "#/components/schemas"
        assert name in document["components"]["schemas"], reference


def test_the_examples_run(real_api: TestClient, document: dict[str, Any]) -> None:
    """Every example of a body, sent as it stands (with the ids of things that are there), is accepted."""
    api, made = real_api, Made(real_api)
    for name in ("small", "t0"):
        made.teacher(name)
    sealed = made.prompt_set()["id"]
    things: dict[str, Callable[[], str]] = {
        "prompt_set_id": lambda: str(made.prompt_set(["x"], seal=False)["id"]),
        "teacher": lambda: "t0",
        "job_id": lambda: str(made.job(prompt_set=sealed)["id"]),
        "decision_id": lambda: str(made.job(prompt_set=sealed)["policy"]["decision"]),
        "override_id": lambda: str(made.override()["id"]),
    }
    ran = 0
    for path, method, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            for name, example in content["examples"].items():
                if path == "/v1/teachers":
                    api.delete(f"/v1/teachers/{example['value']['name']}")
                if path.startswith("/v1/exports"):
                    continue  # tested where exports are
                address = path
                for placeholder in re.findall(r"\{(\w+)\}", path):
                    address = address.replace(f"{{{placeholder}}}", things[placeholder]())
                body = example["value"]
                if isinstance(body, dict) and "prompt_set" in body:
                    body = {**body, "prompt_set": sealed}
                headers = {"Content-Type": media_type}
                if isinstance(body, str):
                    answer = api.request(method, address, content=body.encode(), headers=headers)
                else:
                    answer = api.request(method, address, json=body)
                assert answer.status_code in (200, 201), f"{method} {path}, {name}: {answer.text}"
                ran += 1
    assert ran >= 10


def said_to_curl(block: str, variables: dict[str, str], folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Method, address and what else goes with the request, as a shell reads the block: nothing is sent."""
    script = f'curl() {{ printf "%s\\0" "$@" > words; }}\n{block}'
    subprocess.run(["bash", "-euc", script], cwd=folder, env={**os.environ, **variables}, check=True)
    words = iter((folder / "words").read_bytes().decode().split("\0")[:-1])
    method, address, headers, query, content = "GET", "", {}, {}, None
    for word in words:
        match word:
            case "-X":
                method = next(words)
            case "-H":
                name, _, headers[name] = next(words).partition(": ")
            case "-d" | "--data-binary":
                given = next(words)
                content = (folder / given[1:]).read_bytes() if given.startswith("@") else given.encode()
                method = "POST" if method == "GET" else method
            case "--data-urlencode":
                name, _, query[name] = next(words).partition("=")
            case "-s" | "-sN" | "-sG":
                pass
            case "-sOC":
                assert next(words) == "-"
            case _:
                assert word.startswith("http://127.0.0.1:8321/"), word
                address = word.removeprefix("http://127.0.0.1:8321")
    return method, address, {"headers": headers, "content": content} | ({"params": query} if query else {})


def test_every_operation_shows_a_call_that_runs(
    sqlite_app: tuple[FastAPI, TestClient], document: dict[str, Any], tmp_path: Path
) -> None:
    """Each as a shell reads it, with things that are there."""
    api = sqlite_app[1]
    made = Made(api)
    made.teacher("t0")
    sealed = made.prompt_set([{"prompt": "one", "license": "CC0-1.0"}])["id"]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one", "license": "CC0-1.0"}\n')

    def job(then: str = "") -> str:
        found = str(made.job(prompt_set=sealed)["id"])
        return found if not then else str(api.post(f"/v1/jobs/{found}/{then}").json()["id"])

    def posted(path: str, **body: object) -> str:
        return str(api.post(path, json=body).json()["id"])

    things: dict[str, Callable[[], str]] = {
        "RETORT_API_KEY": lambda: api.headers["Authorization"].removeprefix("Bearer "),
        "SET": lambda: str(made.prompt_set([], seal=False)["id"]),
        "JOB": job,
        "EXPORT": lambda: posted("/v1/exports", selection={"jobs": [job()]}),
        "TEACHER": lambda: str(made.teacher(f"t{len(api.get('/v1/teachers').json()['items'])}")["name"]),
        "KEY": lambda: posted("/v1/keys", name="k", role="reader"),
        "TAKEDOWN": lambda: posted("/v1/takedowns", source="nowhere", who="a", why="b"),
        "DECISION": lambda: str(api.get("/v1/policy/decisions").json()["items"][0]["id"]),
        "OVERRIDE": lambda: str(made.override()["id"]),
        "SEQUENCE": lambda: str(api.get("/v1/audit/head").json()["sequence"]),
        "HASH": lambda: str(api.get("/v1/audit/head").json()["hash"]),
    }
    job()
    special = {  # sealed where a job wants it; events end when their job has; what is paused can be resumed
        "submit_job": {"SET": lambda: sealed},
        "watch_job": {"JOB": lambda: job("cancel")},
        "resume_job": {"JOB": lambda: job("pause")},
    }
    not_there = {"download_file": 404, "read_row_lineage": 404}  # no worker has made these
    for path, method, operation in operations(document):
        name = operation["operationId"]
        (block,) = re.findall(r"```sh\n(.*?)```", operation["description"], re.DOTALL)
        if name == "register_teacher":
            api.delete("/v1/teachers/small")
        elif api.get("/v1/teachers/small").status_code == 404:
            made.teacher("small")
        wanted = {one: make for one, make in (things | special.get(name, {})).items() if f"${one}" in block}
        variables = {one: make() for one, make in wanted.items()}
        said, address, more = said_to_curl(block, variables, tmp_path)
        place = re.sub(r"\{\w+\}", "[^/]+", path)
        assert said.lower() == method, block
        assert re.fullmatch(place, address.partition("?")[0]), block
        answer = api.request(said, address, **more)
        assert answer.status_code == not_there.get(name, answer.status_code), block
        assert answer.is_success or name in not_there, f"{block}: {answer.text}"


class Links(HTMLParser):
    """Every address that a page loads, and its inline scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for name, value in given.items() if name in ("src", "href") and value]
        if tag == "script" and "src" not in given:
            self.inline += 1


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(app: FastAPI, page: str) -> None:
    client = TestClient(app)
    answer = client.get(page)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "http" not in policy
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    links = Links()
    links.feed(answer.text)
    assert links.inline == 0
    assert len(links.addresses) >= 3
    for address in links.addresses:
        assert "//" not in address
        file = client.get(f"/{address}")
        assert (file.status_code, len(file.content) > 100) == (200, True), address
    assert "http" not in answer.text


def test_the_files_of_the_pages_name_no_host_that_they_load_from(app: FastAPI) -> None:
    """Addresses stand in comments and error texts; none is one that is fetched: fonts, images, scripts, validators."""
    client = TestClient(app)
    redoc = client.get("/docs/assets/redoc.standalone.js").text
    assert "cdn.redoc.ly" not in redoc
    css = client.get("/docs/assets/swagger-ui.css").text
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", css)
    assert "@import" not in css
    start = client.get("/docs/assets/start-swagger.js").text
    assert "validatorUrl: null" in start
    for name in ("redoc.standalone.js", "swagger-ui-bundle.js"):
        script = client.get(f"/docs/assets/{name}").text
        assert "fonts.googleapis.com" not in script
        assert "cdn.jsdelivr.net" not in script
    assert client.get("/docs/assets/../../pyproject.toml").status_code == 404
    assert client.get("/docs/assets/other.js").status_code == 404
