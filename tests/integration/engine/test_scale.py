"""What the engine asks of the database all day long costs at a million rows what it costs at a thousand.

Two databases of each kind, with the same last few shards; the statements are the engine's own, caught as it sends them.
The plan of each is a look-up, and the pages (PostgreSQL) or steps of the virtual machine (SQLite) at most double.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select, text, update
from sqlalchemy.orm import Session

from app.db import checkpoints, completions, cutting, jobs, lanes, reusing, shards, tidying
from app.db.checkpoints import ShardBatch, Tally
from app.db.migrate import upgrade
from app.db.models import Completion, Job, Pace, Part, PromptRow, PromptSet, Segment, Shard, ShardAttempt
from app.db.session import connect, db_now, transaction
from app.domain.clock import PACE_SECONDS
from app.services import dispatch
from tests.fixtures.jobs import JobSetup, make_job
from tests.fixtures.postgres import PostgresServer
from tests.model.test_fence import completion_row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARD, SAMPLES = 64, 4
BIG_TABLES = ("completion", "prompt", "shard", "shard_attempt", "segment")
# Nothing but what is under lease or to be claimed is in these; or what failed.
BOUNDED = ("ix_shard_ready", "ix_shard_leased", "ix_completion_failed")


@dataclass(frozen=True)
class Place:
    """A filled database. `open`: half recorded; `full`: recorded, not finished; both under our lease."""

    engine: Engine
    job: str
    waiting: str
    n_shards: int
    open: shards.Claim
    full: shards.Claim
    hashes: tuple[bytes, ...]


def filled(url: str, n_shards: int) -> Place:
    """A job of so many shards, all finished but two that we hold, and another that waits to be claimed."""
    engine = connect(url)
    job = make_job(engine, JobSetup(prompts=1, n=SAMPLES, shard_size=SHARD))
    waiting = make_job(engine, JobSetup(prompts=1, n=SAMPLES, shard_size=SHARD))
    for one in (job, waiting):
        _grow(engine, one, n_shards * SHARD)
    with transaction(engine) as connection:
        numbers = list(
            connection.execute(select(Shard.id).where(Shard.job_id == job).order_by(Shard.id)).scalars()
        )
        _complete(connection, job, numbers)
    if engine.dialect.name == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
    else:
        with transaction(engine) as connection:
            connection.execute(text("ANALYZE"))
    open_, full = (_claim_of(engine, number) for number in numbers[-2:])
    with engine.connect() as connection:
        hashes = connection.execute(
            select(Completion.content_hash).where(
                Completion.job_id == job, Completion.prompt_number < SHARD, Completion.sample_index == 0
            )
        ).scalars()
        return Place(engine, job, waiting, n_shards, open_, full, tuple(hashes))


def series(engine: Engine, count: int) -> str:
    if engine.dialect.name == "postgresql":
        return f"(SELECT generate_series(0, {count - 1}) AS i) AS n"
    numbers = f"SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1}"  # noqa: S608
    return f"(WITH RECURSIVE n(i) AS ({numbers}) SELECT i FROM n) AS n"  # noqa: S608


def _like(table: Any, replaced: dict[str, str]) -> str:
    """INSERT … SELECT: the one row that is there, with other values in some columns."""
    names = [column.name for column in table.__table__.columns if column.name != "id"]
    values = ", ".join(replaced.get(name, f"t.{name}") for name in names)
    name = table.__tablename__
    return f"INSERT INTO {name} ({', '.join(names)}) SELECT {values} FROM {name} AS t"  # noqa: S608


def _grow(engine: Engine, job: str, n_prompts: int) -> None:
    with transaction(engine) as connection:
        prompt_set = connection.execute(select(Job.prompt_set_id).where(Job.id == job)).scalar_one()
        connection.execute(text(
            f"{_like(PromptRow, {'number': 'n.i'})}, {series(engine, n_prompts)}"
            " WHERE t.prompt_set_id = :prompt_set AND n.i > 0"
        ), {"prompt_set": prompt_set})  # fmt: skip
        connection.execute(update(PromptSet).where(PromptSet.id == prompt_set).values(n_prompts=n_prompts))
        connection.execute(text("DELETE FROM shard WHERE job_id = :job"), {"job": job})
        connection.execute(update(Job).where(Job.id == job).values(cut_through=0, n_shards=0, n_expected=0))
    more = True
    while more:
        with transaction(engine) as connection:
            more = cutting.cut(connection, job)


def _complete(connection: Connection, job: str, numbers: list[int]) -> None:
    """All rows but half of the last shard but one; the last two are leased to `us`, the others finished."""
    postgresql = connection.dialect.name == "postgresql"
    first, open_, full = numbers[0], *numbers[-2:]
    row = completion_row(job, (first, 1), 0)
    connection.exec_driver_sql(checkpoints._insert_sql(connection.dialect.name), [row])
    connection.execute(update(Completion).values(answer="x" * 200, content_hash=b"0" * 32))
    hashed = "sha256((n.i || '/' || s.i)::text::bytea)" if postgresql else "randomblob(32)"
    n_prompts = len(numbers) * SHARD
    replaced = {
        "prompt_number": "n.i",
        "sample_index": "s.i",
        "shard_id": f"{first} + n.i / {SHARD}",
        "content_hash": hashed,
    }
    engine = connection.engine
    samples = series(engine, SAMPLES).replace("AS n", "AS s")
    half_open = n_prompts - 2 * SHARD + SHARD // 2
    connection.execute(text(
        f"{_like(Completion, replaced)}, {series(engine, n_prompts)}, {samples}"
        f" WHERE n.i + s.i > 0 AND NOT (n.i >= {half_open} AND n.i < {n_prompts - SHARD})"
    ))  # fmt: skip
    connection.execute(
        update(Shard)
        .where(Shard.job_id == job)
        .values(status="finished", epoch=1, n_completed=SHARD * SAMPLES, segment_id=Shard.id)
    )
    connection.execute(
        update(Shard)
        .where(Shard.id.in_([open_, full]))
        .values(status="leased", owner="us", lease_until=db_now() + 3600, segment_id=None)
    )
    connection.execute(update(Shard).where(Shard.id == open_).values(n_completed=SHARD * SAMPLES // 2))
    connection.execute(
        insert(ShardAttempt),
        [{"shard_id": number, "epoch": 1, "owner": "us", "claimed_at": 1.0} for number in numbers],
    )
    connection.execute(
        insert(Segment),
        [
            {"id": number, "shard_id": number, "generation": 1, "path": f"segments/{number}", "sha256": b"",
             "n_bytes": 1, "n_rows": 1, "k": 0, "created_at": 1.0}
            for number in numbers[:-2]
        ],
    )  # fmt: skip
    if postgresql:
        connection.execute(text("SELECT setval('segment_id_seq', (SELECT max(id) FROM segment))"))
    connection.execute(
        insert(Part), [{"shard_id": full, "epoch": 1, "sequence": i, "payload": b"x"} for i in range(4)]
    )
    now = int(connection.execute(select(db_now())).scalar_one() / PACE_SECONDS)  # as long as pace is kept
    steps = [{"job_id": job, "step": now - i, "stripe": 0, "rows": 1, "tokens": 1} for i in range(1000)]
    connection.execute(insert(Pace), steps)
    tally = Tally(completed=(len(numbers) * SHARD - SHARD // 2) * SAMPLES)
    checkpoints._count(connection, job, 0, 0, tally)
    connection.execute(
        update(Job)
        .where(Job.id == job)
        .values(status="running", started_at=1.0, n_shards_finished=len(numbers) - 2)
    )


def _claim_of(engine: Engine, number: int) -> shards.Claim:
    with engine.connect() as connection:
        row = connection.execute(select(Shard.__table__).where(Shard.id == number)).one()
    return shards.Claim(
        row.id,
        row.epoch,
        row.job_id,
        row.stage,
        row.teacher,
        row.first_prompt,
        row.end_prompt,
        row.n_expected,
        0,
    )


# -- what is asked all day long ------------------------------------------------------------------------------------


def claims(place: Place, connection: Connection) -> None:
    found = shards.candidates(connection, ())
    assert [candidate.job_id for candidate in found] == [place.waiting]
    assert shards.claim(connection, found[0], "us", 60, 1) is not None


def loads(place: Place, connection: Connection) -> None:
    claim = place.open
    lanes.load(connection, place.job, 0)
    name = "t0"
    assert (
        len(checkpoints.prompts_of(connection, place.job, claim.first_prompt, claim.end_prompt, name))
        == SHARD
    )
    assert len(checkpoints.recorded(connection, claim)) == SHARD * SAMPLES // 2


def records(place: Place, connection: Connection) -> None:
    claim = place.open
    batch = ShardBatch(*claim.lease, 1, place.job, 0, part=b"x" * 100)
    first = claim.first_prompt + SHARD // 2
    batch.rows = [completion_row(place.job, claim.lease, first + i) for i in range(16)]
    batch.tally = Tally(completed=len(batch.rows))
    assert checkpoints.record(connection, "us", 0, [batch]) == {claim.lease}


def beats(place: Place, connection: Connection) -> None:
    leases = [place.open.lease, place.full.lease]
    assert shards.extend(connection, "us", leases, 60) == set(leases)
    lanes.statuses(connection, [place.job])


def finishes(place: Place, connection: Connection) -> None:
    claim = place.full
    assert len(checkpoints.parts_of(connection, claim.shard_id)) == 4
    assert checkpoints.segment_of(connection, claim.shard_id) is None
    shards.begin_finalizing(connection, place.job)
    made = checkpoints.add_segment(connection, claim.shard_id, 1, "segments/new", b"", 1, 1, 0)
    assert shards.finish(connection, "us", *claim.lease, made)


def releases(place: Place, connection: Connection) -> None:
    assert shards.release(connection, "us", *place.open.lease, "released", None)
    shards.release_strays(connection, "us", [place.full.shard_id])


def dispatches(place: Place, connection: Connection) -> None:
    dispatch.tick(place.engine, lambda teacher: None)


def reads_counters(place: Place, connection: Connection) -> None:
    with Session(connection) as session:
        both = [place.job, place.waiting]
        found = jobs.counts(session, both)
        assert found[(place.job, 0)].completed == (place.n_shards * SHARD - SHARD // 2) * SAMPLES
        jobs.steps(session, both, 24)


def pages(place: Place, connection: Connection) -> None:
    """The first page and the last one."""
    with Session(connection) as session:
        for after in (None, (0, place.n_shards * SHARD - SHARD, 0, 0)):
            assert len(completions.page(session, place.job, (0,), None, False, after, 20)) == 20
        assert completions.failed(session, place.job, (), None, None, 20) == []
        for start in (None, (0, 0, place.n_shards * SHARD - 4 * SHARD)):
            found = jobs.shards(session, place.job, None, start, 3)
            jobs.attempts(session, [shard.id for shard in found])


def reuses(place: Place, connection: Connection) -> None:
    mine = connection.execute(select(Job.project_id).where(Job.id == place.job)).scalar_one()
    for digest in place.hashes[:2]:  # one by one: many at once touch more pages than a small database has
        assert len(reusing.equal_rows(connection, mine, place.waiting, 0, [digest])) == 1


def keeps_house(place: Place, connection: Connection) -> None:
    for job in tidying.active_jobs(connection):
        tidying.old_pace(connection, job, 24)
    tidying.jobs_to_tidy(connection, tidying.NOTHING, 0)
    tidying.expired_requests(connection, 24)
    tidying.expired_grants(connection)
    paths = [f"segments/{place.full.shard_id - i}" for i in range(1, 4)]
    tidying.pointed_at(connection, paths)
    tidying.may_still_be_committed(connection, [place.open.lease])


WORK: tuple[Callable[[Place, Connection], None], ...] = (
    claims, loads, records, beats, finishes, releases, dispatches, reads_counters, pages, reuses, keeps_house,
)  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """What was sent, and what was SET just before it."""

    sql: str
    given: Any
    setting: str


@contextmanager
def undone(engine: Engine) -> Iterator[Connection]:
    """A writing transaction that is rolled back."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin() as begun:
        yield connection
        begun.rollback()


def caught(place: Place, work: Callable[[Place, Connection], None]) -> list[Statement]:
    """The statements that the work sends; of many rows at once, the first."""
    seen: list[Statement] = []
    setting = ""

    def note(_: object, __: object, statement: str, given: Any, ___: object, many: bool) -> None:
        nonlocal setting
        word = statement.split()[0]
        if word == "SET":
            setting = statement
        if word in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            seen.append(Statement(statement, given[0] if many else given, setting))
            setting = ""

    event.listen(place.engine, "before_cursor_execute", note)
    try:
        if work is dispatches:  # has transactions of its own
            work(place, None)  # type: ignore[arg-type]
        else:
            with undone(place.engine) as connection:
                work(place, connection)
    finally:
        event.remove(place.engine, "before_cursor_execute", note)
    return seen


def scans(engine: Engine, statement: Statement) -> list[str]:
    """Steps of the plan that walk through a big table."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.sql}", statement.given).all()
            told = [str(step[3]) for step in steps]
            return [
                step
                for step in told
                if step.startswith("SCAN") and step.split()[1] in BIG_TABLES and not step.endswith(BOUNDED)
            ]
        plan = _explained(connection, statement, "EXPLAIN (FORMAT JSON)")
        return [
            f"{node['Node Type']} of {node['Relation Name']}"
            for node in nodes(plan)
            if node.get("Relation Name") in BIG_TABLES
            and node["Node Type"] not in ("ModifyTable", "Tid Scan")
            and (node["Node Type"] == "Seq Scan" or (
                "Index Cond" not in node and "Recheck Cond" not in node and node.get("Index Name") not in BOUNDED
            ))
        ]  # fmt: skip


def _explained(connection: Connection, statement: Statement, how: str) -> dict[str, Any]:
    if statement.setting:
        connection.exec_driver_sql(statement.setting)
    (plan,) = connection.exec_driver_sql(f"{how} {statement.sql}", statement.given).scalar_one()
    found: dict[str, Any] = plan["Plan"]
    return found


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def cost(place: Place, statements: list[Statement]) -> int:
    """Pages of PostgreSQL's buffers, or steps of SQLite's virtual machine, of all the statements."""
    if place.engine.dialect.name == "postgresql":
        return sum(_buffers(place.engine, statement) for statement in statements)
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    for statement in statements:
        with undone(place.engine) as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_progress_handler(step, 1)
            try:
                result = connection.exec_driver_sql(statement.sql, statement.given)
                if result.returns_rows:
                    result.all()
            finally:
                driver.set_progress_handler(None, 0)
    return steps


def _buffers(engine: Engine, statement: Statement) -> int:
    """Of the second time: the first one marks rows as dead or alive."""
    for _ in range(2):
        with undone(engine) as connection:
            # A thousand rows are scanned sooner than looked up; it is look-ups that are compared.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = _explained(connection, statement, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)")
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    """1,024 rows and 1,048,576."""
    urls = [f"sqlite:///{tmp_path / f'{name}.db'}" for name in ("small", "big")]
    server: PostgresServer | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        urls = [server.create(name) for name in ("scale_small", "scale_big")]
    for url in urls:
        upgrade(url)
    small, big = filled(urls[0], 4), filled(urls[1], 4096)
    yield small, big
    for place in (small, big):
        place.engine.dispose()
    if server is not None:
        for name in ("scale_small", "scale_big"):
            server.drop(name)


def test_a_million_rows_cost_what_a_thousand_cost(places: tuple[Place, Place]) -> None:
    small, big = places
    with big.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(Completion)).scalar_one() > 1_000_000
    wrong, measured = [], {}
    for work in WORK:
        statements = caught(big, work)
        assert statements
        wrong += [
            f"{work.__name__}: {scan} in {one.sql}" for one in statements for scan in scans(big.engine, one)
        ]
        measured[work.__name__] = (cost(small, caught(small, work)), cost(big, statements))
    assert wrong == [], "\n".join(wrong)
    sys.stdout.write(f"{measured}\n")  # the figures of docs/reliability.md
    assert {name: costs for name, costs in measured.items() if costs[1] > 2 * costs[0]} == {}
    for place in places:  # and without its index a claim walks through all shards that wait: the test sees it
        with transaction(place.engine) as connection:
            connection.execute(text("DROP INDEX ix_shard_ready"))
    assert cost(big, caught(big, claims)) > 2 * cost(small, caught(small, claims))
