"""A takedown whose worker is killed with SIGKILL, again and again, ends as one that nobody disturbed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from app.db import takedowns
from app.db.session import connect, transaction
from app.storage.places import open_storage
from app.storage.segments import read_segment
from tests.fixtures.completed import Rows, add_job, complete

pytestmark = pytest.mark.faults

PROMPTS = 60
# Before each step it says so and waits for a line: the test decides when it goes on, and no clock does.
WORKER = """
import sys, time
from app.db.session import connect
from app.services import takedown
from app.storage.places import open_storage

def tick() -> bool:
    print("step", flush=True)
    assert sys.stdin.readline()
    return False

database, storage = connect(sys.argv[1]), open_storage(sys.argv[2])
while not takedown.run_next(database, storage, sys.argv[3], 0.2, tick, again_seconds=0):
    time.sleep(0.05)  # the lease of the one that was killed
print("done", flush=True)
"""


def test_kill_after_kill(database_url: str, tmp_path: Path) -> None:
    database, storage = connect(database_url), open_storage(str(tmp_path / "storage"))
    bodies = [
        {"prompt": f"planted {i}" if i % 4 == 0 else f"other {i}", "source": "book" if i % 4 == 0 else "ours"}
        for i in range(PROMPTS)
    ]
    rows = Rows(prompts=PROMPTS, tokens=4, k=2, shard_size=6)
    add_job(database, rows, [dict(body) for body in bodies])
    complete(database, storage, rows)
    with transaction(database) as connection:
        connection.execute(
            text("UPDATE prompt SET source_key = :key WHERE source = 'book'"), {"key": _key("book")}
        )
        takedowns.add(
            connection,
            {
                "id": "tkd_1",
                "project_id": "prj_1",
                "kind": "source",
                "target": {"source": "book"},
                "who": "x",
                "why": "y",
                "withdraw_exports": False,
                "created_by": "key_1",
            },
        )
    kills = 0
    for n, steps in enumerate(range(1, 200, 4)):
        kills += _killed(database_url, tmp_path, steps, within=n % 2 == 1)
        with database.connect() as connection:
            if connection.execute(text("SELECT status FROM takedown")).scalar() == "completed":
                break
    assert kills >= 3
    with database.connect() as connection:
        found = connection.execute(text("SELECT status, n_prompts, n_completions FROM takedown")).one()
        assert tuple(found) == ("completed", 15, 15)
        grouped = connection.execute(text("SELECT status, count(*) FROM completion GROUP BY status"))
        counts = {row[0]: row[1] for row in grouped}
        assert counts == {"completed": 45, "removed": 15}
        counters = "SELECT sum(completed), sum(removed) FROM counter"
        assert tuple(connection.execute(text(counters)).one()) == (45, 15)
        assert connection.execute(text("SELECT sum(n_expected) FROM shard")).scalar() == 45
        assert connection.execute(text("SELECT n_expected FROM job")).scalar() == 45
        current = connection.execute(
            text("SELECT g.path FROM segment g JOIN shard s ON s.segment_id = g.id ORDER BY g.path")
        ).scalars()
        paths = list(current)
    assert sorted(storage.list("segments")) == sorted(paths)
    kept = {n for path in paths for n in read_segment(storage, path).column("prompt_number").to_pylist()}
    assert kept == {i for i in range(PROMPTS) if i % 4}
    database.dispose()


def _killed(database_url: str, folder: Path, steps: int, within: bool) -> bool:
    """Let a worker take some steps and kill it, `within` the last of them or behind it.

    False: it was done before its time had come.
    """
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, database_url, str(folder / "storage"), f"w{steps}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for n in range(steps + 1):
            line = worker.stdout.readline()
            if line != "step\n":
                assert line == "done\n"
                return False
            if n < steps:
                worker.stdin.write("\n")
                worker.stdin.flush()
                if within and n == steps - 1:
                    break
        worker.send_signal(signal.SIGKILL)
    return True


def _key(source: str) -> bytes:
    from app.domain.fingerprints import source_key

    key = source_key(source)
    assert key is not None
    return key
