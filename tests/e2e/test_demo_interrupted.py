"""The demo, stopped at a dozen moments by Ctrl-C, by a kill and by a closed terminal: nothing is broken, it goes on."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.demo.main_job import bundled
from app.teachers import embedded_model
from tests.fixtures import processes
from workers.running import read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
MOMENTS = 12
PATIENCE = 120.0
PATIENCE_FOR_ALL = 900.0
ENDINGS = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def start(data_dir: Path, port: int, log: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "RETORT_DATA_DIR": str(data_dir), "RETORT_PORT": str(port)}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "app.demo"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def of_folder(data_dir: Path) -> list[psutil.Process]:
    """Every process that works on this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("RETORT_DATA_DIR") == str(data_dir)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    for process in of_folder(tmp_path / "data"):  # where the test failed
        process.kill()


def rows(data_dir: Path) -> dict[tuple[object, ...], str]:
    """The completions that are stored: place → hash of the answer's bytes. The file must be whole."""
    database = data_dir / "retort.db"
    if not database.exists():
        return {}
    with sqlite3.connect(database, timeout=60) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        found = (
            connection.execute(
                "SELECT job_id, stage, prompt_number, teacher, sample_index, status, hex(response_hash) FROM completion"
            ).fetchall()
            if "completion" in tables
            else []
        )
    connection.close()
    return {tuple(row[:5]): f"{row[5]} {row[6]}" for row in found}


def finish(data_dir: Path, port: int, log: Path) -> None:
    """Until it is done: on a machine that does much else, rows can be late and fail, which the next run makes again."""
    for _ in range(4):
        if start(data_dir, port, log).wait(PATIENCE_FOR_ALL) == 0:
            return
        assert "rows failed" in log.read_text() or "failed\n" in log.read_text(), log.read_text()[-3000:]
    raise AssertionError(log.read_text()[-3000:])


def test_stopped_at_any_moment_it_goes_on(data_dir: Path, tmp_path: Path) -> None:
    embedded_model.fetch()
    seed = int(time.time())
    chance = random.Random(seed)
    port, log = processes.free_port(), tmp_path / "demo.log"
    stored: dict[tuple[object, ...], str] = {}
    for moment in range(MOMENTS):
        demo = start(data_dir, port, log)
        how, seconds = ENDINGS[moment % len(ENDINGS)], chance.uniform(0.2, 14)
        told = f"seed {seed}, moment {moment}: {how.name} after {seconds:.1f} s"
        end = time.monotonic() + seconds
        while demo.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if how == signal.SIGINT:
            os.killpg(demo.pid, how)  # as a terminal does
        else:
            demo.send_signal(how)
        code = demo.wait(PATIENCE)
        assert code in (0, 130, 1, -how), f"{told}: it ended with {code}\n{log.read_text()[-3000:]}"
        end = time.monotonic() + PATIENCE
        while left := of_folder(data_dir):
            assert time.monotonic() < end, f"{told}: {left} go on without it"
            time.sleep(0.1)
        assert read_state(data_dir) is None
        now = rows(data_dir)
        lost = {place for place, row in stored.items() if now.get(place) != row}
        assert not lost, f"{told}: {len(lost)} rows that were stored are gone or changed"
        stored = now
    text = log.read_text()
    assert "Traceback" not in text, text[-4000:]

    finish(data_dir, port, log)
    whole = rows(data_dir)
    assert {place: whole[place] for place in stored} == stored
    count = len(bundled().splitlines())
    assert len(whole) == count
    assert len({place[0] for place in whole}) == 1, "one job did it all"
    assert all(row.startswith("completed") for row in whole.values())
    lines = [
        json.loads(line)
        for file in (data_dir / "demo" / "jsonl").glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    ]
    assert len({line["row_id"] for line in lines}) == len(lines) == count
    finish(data_dir, port, log)
    assert rows(data_dir) == whole
    assert "nothing is generated twice" in log.read_text()
