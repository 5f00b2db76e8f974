"""A large export: a worker's process that makes it, beside pyarrow writing the same columns; speed, CPU and memory.

Both may use every core: an export reads in one thread while another one writes, and that is what makes its speed.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from app.db.migrate import upgrade
from app.db.session import connect
from app.storage.places import open_storage
from tests.bench.contenders import WRITER
from tests.bench.contenders.base import ALL_CORES
from tests.bench.measures.life import bare_writer
from tests.bench.null_teacher import ROOT
from tests.bench.process_tree import Meter, pinned
from tests.bench.readings import Reading
from tests.bench.stage import Stage
from tests.fixtures.completed import Rows, add_job, complete

TITLE = "A large export"


def case(rows: int, k: int) -> str:
    return f"{rows:,} rows of text" if not k else f"{rows:,} rows, 64 tokens, k = {k}"


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    many = stage.sizes.large
    # A row with tokens has ten times the bytes of one without.
    for rows in (
        Rows(prompts=many, words=90, shard_size=256),
        Rows(prompts=max(many // 10, 1), words=60, shard_size=256, tokens=64, k=20),
    ):
        with stage.scratch() as folder:
            found, files = _exported(rows, folder)
            bare = bare_writer(files, folder / "bare.parquet", ALL_CORES)
        for contender, figures in (("retort", found), (WRITER, bare)):
            for figure, value in figures.items():
                yield Reading("export", case(rows.prompts, rows.k), contender, figure, repeat, value)


def _exported(rows: Rows, folder: Path) -> tuple[dict[str, float], list[Path]]:
    """A job of so many rows as workers leave it, exported by a process that does nothing else."""
    database_url, place = f"sqlite:///{folder / 'retort.db'}", folder / "storage"
    upgrade(database_url)
    database, storage = connect(database_url), open_storage(str(place))
    add_job(database, rows)
    complete(database, storage, rows)
    database.dispose()
    command = [sys.executable, "-m", "tests.bench.export_maker", database_url, str(place), rows.id]
    with pinned(ALL_CORES):  # the harness itself keeps to one
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with Meter({"worker": [process.pid]}) as meter:
        process.stdin.write(b"go\n")
        process.stdin.flush()
        made = orjson.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
    assert made == {"status": "completed", "rows": rows.prompts}, made
    return {
        "rows_per_second": rows.prompts / meter.used.wall,
        "cpu_us_per_row": meter.used.cpu["worker"] / rows.prompts * 1e6,
        "peak_mb": meter.used.peak_total / 1e6,
    }, sorted((place / "exports").rglob("*.parquet"))
