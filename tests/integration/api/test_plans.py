"""Reads that grow with the data are index look-ups, on both databases: no scan of a big table, no sort of all of it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text

from .answering import work_off
from .conftest import NDJSON, Made, lines

BIG = (
    "completion",
    "prompt",
    "prompt_error",
    "shard",
    "shard_attempt",
    "part",
    "segment",
    "pace",
    "counter",
    "export_member",
    "audit_event",
)


@pytest.fixture
def job(app: FastAPI, api: TestClient, made: Made) -> dict[str, Any]:
    given = app.state.resources
    open_set = made.prompt_set([f"prompt {n}" for n in range(600)], seal=False)["id"]
    api.post(f"/v1/prompt-sets/{open_set}/prompts", content=b"{\n" * 30 + lines("x"), headers=NDJSON)
    api.post(f"/v1/prompt-sets/{open_set}/seal")
    job: dict[str, Any] = made.job(prompt_set=open_set, n=2, top_logprobs=2)
    work_off(
        given.engine, given.storage, job["id"], 2, lambda number, index: "x" if number % 50 == 3 else None
    )
    api.post(f"/v1/jobs/{job['id']}/retry")  # it runs again: its pace is read
    made.job(prompt_set=made.prompt_set()["id"])
    if given.engine.dialect.name == "postgresql":
        with given.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
    return job


def reads(api: TestClient, job: dict[str, Any]) -> Iterator[str]:
    """Every read that a big job or set makes big, first page and a later one."""
    jobs, sets = f"/v1/jobs/{job['id']}", f"/v1/prompt-sets/{job['prompt_set']}"
    yield from (
        f"/v1/lineage/row?row_id={job['id']}/0/7/0/1",
        "/v1/lineage/exports?teacher=t0",
        "/v1/lineage/exports?source=nowhere",
        f"/v1/lineage/exports?prompt_set={job['prompt_set']}&prompt_number=7",
        "/v1/audit?limit=3",
        f"/v1/audit?subject={job['id']}&limit=3",
        "/v1/policy/decisions",
    )
    yield from (jobs, "/v1/jobs", sets, "/v1/prompt-sets", f"{jobs}/completions?prompt_number=7")
    for path in (
        f"{jobs}/completions?limit=20&include=tokens&include=prompt",
        f"{jobs}/completions?limit=20&status=completed",
        f"{jobs}/completions?limit=2&status=failed",
        f"{jobs}/failures?limit=2&kind=x",
        f"{jobs}/shards?limit=1",
        f"{sets}/prompts?limit=20",
        f"{sets}/errors?limit=20",
    ):
        yield path
        cursor = api.get(path).json()["next_cursor"]
        if cursor is not None:
            yield f"{path}&cursor={cursor}"


def statements(engine: Engine, api: TestClient, path: str) -> list[tuple[str, Any]]:
    """The SELECTs that one request makes, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        assert api.get(path).status_code == 200, path
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return seen


def complaints(engine: Engine, statement: str, parameters: Any) -> list[str]:
    """What is wrong with the plan of a statement."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            steps = [str(row[3]) for row in rows]
            scans = [step for step in steps if step.startswith("SCAN") and step.split()[1] in BIG]
            return scans + [step for step in steps if step == "USE TEMP B-TREE FOR ORDER BY"]
        # With so few rows a scan can be the cheapest: what is asked is whether there is another way.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        return [
            f"{node['Node Type']} of {node['Relation Name']}"
            for node in nodes(plan["Plan"])
            if node.get("Relation Name") in BIG
            and (node["Node Type"] == "Seq Scan" or "Index Cond" not in node)
        ]


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def test_reads_are_index_lookups(app: FastAPI, api: TestClient, job: dict[str, Any]) -> None:
    engine = app.state.resources.engine
    read, wrong = 0, []
    for path in reads(api, job):
        for statement, parameters in statements(engine, api, path):
            read += any(f"FROM {table}" in statement for table in BIG)
            if (
                engine.dialect.name == "postgresql"
            ):  # for SQLite, SQLAlchemy writes OFFSET 0 behind each LIMIT
                assert "OFFSET" not in statement.upper()
            assert "COUNT(" not in statement.upper()
            wrong += [f"{path}: {one}\n{statement}" for one in complaints(engine, statement, parameters)]
    assert read > 20
    assert wrong == []


def test_the_check_finds_a_scan(app: FastAPI, job: dict[str, Any]) -> None:
    engine = app.state.resources.engine
    assert complaints(engine, "SELECT answer FROM completion WHERE answer = 'x'", ()) != []
    if engine.dialect.name == "sqlite":
        assert complaints(engine, "SELECT * FROM prompt ORDER BY source", ()) != []


def test_a_job_is_read_by_as_many_statements_at_any_size(app: FastAPI, api: TestClient, made: Made) -> None:
    engine = app.state.resources.engine
    few = made.job(prompt_set=made.prompt_set(["a"])["id"])["id"]
    many = made.job(prompt_set=made.prompt_set([f"p{n}" for n in range(3000)])["id"])["id"]
    counts = {len(statements(engine, api, f"/v1/jobs/{job}")) for job in (few, many)}
    assert len(counts) == 1
    for _ in range(5):
        made.job(prompt_set=made.prompt_set(["a"])["id"])
    page = len(statements(engine, api, "/v1/jobs"))
    assert page <= counts.pop() + 1
