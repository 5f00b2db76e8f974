"""The embedded profile as a user runs it: started, killed in parts and whole, started again, stopped."""

import signal
import socket
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx

from app.teachers import embedded_model
from tests.faults.world import ScriptedServer
from tests.integration.embedded.conftest import Up, alive, counts, kill, submit, until, up


def _is_another(run: Up, name: str, before: int) -> bool:
    return run.child(name) != before


def test_what_is_killed_comes_back_and_the_work_goes_on(
    data_dir: Path, port: int, teacher: ScriptedServer
) -> None:
    embedded_model.fetch()
    with up(data_dir, port) as run:
        state = run.await_ready()
        assert set(state.children) == {"broker", "worker", "API"}
        assert (data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
        with run.api() as api:
            small = api.get("/v1/teachers/embedded").json()
            assert (small["capabilities"]["max_top_logprobs"], small["capabilities"]["token_ids"]) == (
                128,
                True,
            )
            teacher.change(delay=0.5)
            job = submit(api, teacher.url, 2000)["id"]
            until(lambda: counts(api, job)["completed"] > 0, "first rows")
            for name in ("worker", "API", "broker"):
                before = run.child(name)
                kill(before)
                # The listening socket outlives the API's process: a request waits for the next one.
                until(partial(_is_another, run, name, before), f"another {name}")
                assert api.get("/healthz").status_code == 200
            assert run.said.count("was ended by SIGKILL; it is started again") == 3
            teacher.change(delay=0.0)
            until(lambda: counts(api, job)["status"] == "completed", "the job's end")
            found = counts(api, job)
            assert (found["completed"], found["failed"]) == (2000, 0)

        second = subprocess.run(
            [sys.executable, "-m", "app.cli", "up"],
            env=run.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 4
        assert f"process {run.process.pid}, ready since" in second.stderr
        detached = subprocess.run(
            [sys.executable, "-m", "app.cli", "up", "--detach"],
            env=run.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (detached.returncode, "runs already" in detached.stderr) == (0, True)

        children = list(run.state.children.values()) if run.state else []
        run.process.send_signal(signal.SIGTERM)
        assert run.ended() == 0, run.said
        assert run.said.rstrip().endswith("Stopped.")
        assert alive(children) == []
        assert run.state is None
        assert not (data_dir / "up.json").exists()


def test_a_killed_supervisor_leaves_nothing_running_and_the_next_goes_on_at_once(
    data_dir: Path, port: int, teacher: ScriptedServer
) -> None:
    """Leases are an hour long here: the next start frees those of the dead, so that nobody waits for them."""
    with up(data_dir, port, RETORT_ENGINE__LEASE_SECONDS="3600") as run:
        children = list(run.await_ready().children.values())
        with run.api() as api:
            teacher.change(delay=0.2)
            job = submit(api, teacher.url, 600)["id"]
            until(lambda: counts(api, job)["completed"] > 0, "first rows")
        kill(run.process.pid)
        run.process.wait()
        until(lambda: alive(children) == [], "the children's end")
    teacher.change(delay=0.0)
    with up(data_dir, port) as run:
        run.await_ready()
        with run.api() as api:
            until(lambda: counts(api, job)["status"] == "completed", "the job's end")
            assert counts(api, job)["completed"] == 600
            shards = api.get(f"/v1/jobs/{job}/shards").json()["items"]
            assert "lost" in {attempt["outcome"] for shard in shards for attempt in shard["attempts"]}
    assert run.said.count("error") == 0


def test_on_any_port_and_on_a_leash_it_ends_with_its_owner(data_dir: Path) -> None:
    with up(data_dir, 0, "-m", "workers.embedded", "--leashed") as run:
        state = run.await_ready()
        assert httpx.get(f"{state.url}/readyz", trust_env=False).json()["status"] == "ready"
        children = list(state.children.values())
        assert run.process.stdin is not None
        run.process.stdin.close()
        assert run.ended() == 0
        assert alive(children) == []


def test_of_two_that_start_at_once_one_serves(data_dir: Path, port: int) -> None:
    with up(data_dir, port) as one, up(data_dir, port) as other:
        until(lambda: 4 in (one.process.poll(), other.process.poll()), "one gives way")
        stays = other if one.process.poll() == 4 else one
        stays.await_ready()
        assert "Nothing was started" in stays.said


def test_a_port_that_is_taken(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, up(data_dir, taken.getsockname()[1]) as run:
        assert run.ended() == 1
        assert "RETORT_PORT (or --port) chooses another one" in run.said


def test_a_data_folder_that_is_a_file(data_dir: Path, port: int) -> None:
    data_dir.write_text("not a folder")
    with up(data_dir, port) as run:
        assert run.ended() == 1
        assert run.said == f"error: {data_dir}: File exists\n"


def test_a_database_of_a_newer_version_is_left_alone(
    data_dir: Path, migrated_sqlite: Path, port: int
) -> None:
    data_dir.mkdir()
    content = migrated_sqlite.read_bytes()
    (data_dir / "retort.db").write_bytes(content)
    with sqlite3.connect(data_dir / "retort.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with up(data_dir, port) as run:
        assert run.ended() == 1
        assert "which this version does not know" in run.said
        assert "Traceback" not in run.said


def test_a_part_that_cannot_start_says_why(data_dir: Path, port: int) -> None:
    with up(data_dir, port, RETORT_STORAGE__URL="floppy://a") as run:
        assert run.ended() == 1
        assert "did not start" in run.said
        assert "floppy" in run.said
        assert run.state is None
