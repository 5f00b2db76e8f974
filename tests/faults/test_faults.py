"""The kill matrix. After each fault: every prompt has its completions or a failed row with a reason, none twice; every
pointer's checksum holds; the counters equal a recount; and only what was in flight or unflushed was asked for again.

CI runs it with some hundred prompts; `make faults` with ten thousand, and writes the table in docs/reliability.md.
"""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import select

from app.db.models import Leader
from app.db.session import connect, reading
from tests.faults import report
from tests.faults.world import (
    FULL,
    LEASE,
    PROMPTS,
    REPEATED_PER_WORKER,
    World,
    fill,
    locked,
    small_disk,
    worker_pid_of,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with World(request.param, tmp_path / "world") as made:
        yield made


def settle(world: World, job: str, fault: str, hit: int, workers: int = 0) -> dict[str, int]:
    """Check everything and note it. `hit`: how many workers the fault took answers from."""
    for _ in range(workers):
        world.start_worker()
    found = world.check(job, 600 if FULL else 120)
    assert found["failed"] == 0
    assert found["again"] <= hit * REPEATED_PER_WORKER, f"{found['again']} samples were made again"
    report.note(world.kind, fault, PROMPTS, found)
    return found


def test_no_fault_no_repetition(world: World) -> None:
    job = world.submit()
    found = settle(world, job, "none", hit=0, workers=2)
    assert found["again"] == 0


def test_worker_killed_in_its_calls(world: World) -> None:
    job = world.submit()
    victim = world.start_worker()
    world.start_worker()
    world.wait_done(job, 0.3)
    victim.kill()
    settle(world, job, "kill -9 of a worker in its calls", hit=1)


@pytest.mark.parametrize(
    "instruction", ["file-written", "rows-inserted", "checkpoint-committed", "shard-ended"]
)
def test_worker_killed_at_an_instruction(world: World, instruction: str) -> None:
    job = world.submit()
    victim = world.start_worker(crash=instruction)
    victim.wait(90)
    assert victim.returncode == -signal.SIGKILL
    settle(world, job, f"kill -9 of a worker: {instruction}", hit=1, workers=2)


def test_api_killed_and_started_again(world: World) -> None:
    job = world.submit()
    world.start_worker()
    world.wait_done(job, 0.2)
    assert world.service.api is not None
    world.service.api.kill()
    world.service.api.wait()
    time.sleep(1)
    world.service.start_api()
    settle(world, job, "kill -9 of the API", hit=0)


def test_dispatcher_killed(world: World) -> None:
    job = world.submit()
    workers = [world.start_worker() for _ in range(2)]
    world.wait_done(job, 0.2)
    engine = connect(world.database_url)
    with reading(engine) as connection:
        leader = connection.execute(select(Leader.owner).where(Leader.duty == "dispatch")).scalar_one()
    engine.dispose()
    victim = next(worker for worker in workers if worker.pid == worker_pid_of(leader))
    victim.kill()
    settle(world, job, "kill -9 of the dispatcher", hit=1)


def test_broker_killed_flushed_and_started_empty(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.start_worker()
    world.wait_done(job, 0.2)
    world.broker.flush()
    world.broker.stop(signal.SIGKILL)
    second = world.submit(100)  # the API takes jobs without a broker
    time.sleep(2)
    world.broker.start()
    settle(world, job, "broker flushed, killed, restarted empty", hit=0)
    world.service.wait(f"/v1/jobs/{second}", 60)


def test_database_stopped_at_once_or_locked(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.start_worker()
    world.wait_done(job, 0.2)
    if world.postgres is not None:
        world.postgres.stop(signal.SIGQUIT)
        time.sleep(2)
        world.postgres.start()
        fault = "PostgreSQL stopped at once for 2 s"
    else:
        with locked(world.database_url, 2):
            fault = "SQLite locked for 2 s"
    settle(world, job, fault, hit=2)


def test_disk_full_in_the_segment_folder(world: World) -> None:
    with small_disk(world.folder / "storage", 4) as disk:
        job = world.submit()
        world.start_worker()
        world.wait_done(job, 0.1)
        ballast = fill(disk)
        time.sleep(3)
        ballast.unlink()
        settle(world, job, "segment folder full for 3 s", hit=0)


def test_disk_full_in_the_database_folder(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk, World("sqlite", tmp_path / "world", data=disk) as world:
        job = world.submit()
        world.start_worker()
        world.wait_done(job, 0.1)
        ballast = fill(disk)
        time.sleep(3)
        ballast.unlink()
        settle(world, job, "SQLite's folder full for 3 s", hit=1)


def test_a_zombie_is_fenced(world: World) -> None:
    job = world.submit()
    zombie = world.start_worker()
    world.wait_done(job, 0.1)
    zombie.send_signal(signal.SIGSTOP)
    world.start_worker()
    time.sleep(LEASE + 1.5)
    zombie.send_signal(signal.SIGCONT)
    settle(world, job, "SIGSTOP past the lease, then SIGCONT", hit=1)


def test_messages_doubled_stale_and_forged(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.start_worker()
    sender = Celery("forger", broker=world.broker.url)
    for number in range(100):
        sender.send_task("retort.wake", queue="retort")
        sender.send_task("retort.wake", args=[{"shard": number}], queue="retort")
        sender.send_task("retort.destroy", args=[job], queue="retort")
        sender.send_task("retort.wake", queue="retort", expires=-5)
    with sender.connection_for_write() as connection, connection.Producer() as producer:
        for body in (b"\xff\x00 no json", b"[]", b'{"a": 1}'):
            producer.publish(
                body, routing_key="retort", content_type="application/json", content_encoding="utf-8"
            )
    settle(world, job, "400 stray and forged messages", hit=0)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_workers_clock_is_an_hour_off(tmp_path: Path, hours: int) -> None:
    with World("postgresql", tmp_path / "world") as world:
        job = world.submit()
        world.start_worker(clock=3600 * hours)
        world.start_worker()
        found = settle(world, job, f"a worker's clock {hours:+d} h", hit=0)
        assert found["again"] == 0


def test_a_teacher_that_dies_hangs_lies_and_returns(world: World) -> None:
    job = world.submit()
    world.start_worker()
    world.wait_done(job, 0.1)
    world.teacher.kill()
    time.sleep(2.5)
    parked = world.service.call("GET", f"/v1/jobs/{job}")
    assert parked["status"] == "parked", parked
    world.teacher.start()
    world.wait_done(job, 0.3)
    world.teacher.change(faults=[{"kind": "hang", "share": 0.3, "seconds": 2}])
    time.sleep(1)
    world.teacher.change(faults=[{"kind": "nan-logprobs", "share": 0.3}, {"kind": "429", "share": 0.2}])
    time.sleep(1)
    world.teacher.change(faults=[{"kind": "cut", "share": 0.3}, {"kind": "500", "share": 0.2}])
    time.sleep(1)
    world.teacher.change(model="another")
    time.sleep(2)
    world.teacher.change(model="scripted", faults=[])
    ended = world.check(job, 600 if FULL else 120)
    report.note(world.kind, "teacher dies, hangs, lies, returns", PROMPTS, ended)
    failed = world.service.call("GET", f"/v1/jobs/{job}/failures", params={"limit": 200})["items"]
    assert all(row["error_kind"].startswith(("teacher-", "deadline")) for row in failed)
    if failed:
        world.service.call("POST", f"/v1/jobs/{job}/retry", json={})
        assert world.check(job)["failed"] == 0


def test_two_apis(world: World) -> None:
    first = world.service.api
    port, url, http = world.service.port, world.service.url, world.service.http
    job = world.submit()
    from tests.fixtures.service import Service

    other = Service(world.database_url, world.broker.url, world.folder / "data", world.service.environment)
    try:
        other.start_api()
        second = other.submit("scripted", b'"one"\n"two"\n')
        world.start_worker()
        other.wait(f"/v1/jobs/{second['id']}", 60)
        settle(world, job, "two API processes", hit=0)
    finally:
        other.stop()
    assert (first, port, url, http) == (
        world.service.api,
        world.service.port,
        world.service.url,
        world.service.http,
    )


def test_a_second_signal_leaves_at_once(world: World) -> None:
    job = world.submit()
    world.teacher.change(delay=1.0)
    victim = world.start_worker()
    world.wait_done(job, 0.02)
    victim.terminate()
    time.sleep(0.5)
    victim.terminate()
    started = time.monotonic()
    victim.wait(5)
    assert time.monotonic() - started < 3
    world.teacher.change(delay=0.02)
    settle(world, job, "SIGTERM twice", hit=1, workers=1)


def test_sigterm_drains(world: World) -> None:
    job = world.submit()
    victim = world.start_worker()
    world.wait_done(job, 0.2)
    victim.terminate()
    assert victim.wait(15) == 0
    found = settle(world, job, "SIGTERM", hit=0, workers=1)
    assert found["again"] == 0


def test_everything_at_random(world: World) -> None:
    """Faults drawn with a seed while a job runs; the full form goes on for minutes."""
    seed = 20261125
    drawn = random.Random(seed)
    job = world.submit(n=2)
    workers = [world.start_worker() for _ in range(2)]
    end = time.monotonic() + (180 if FULL else 12)
    hit = 0
    while time.monotonic() < end:
        time.sleep(drawn.uniform(0.3, 1.5))
        match drawn.randrange(6):
            case 0:
                victim = drawn.choice(workers)
                victim.kill()
                victim.wait()
                workers.remove(victim)
                workers.append(world.start_worker())
                hit += 1
            case 1:
                world.broker.flush()
            case 2:
                if world.postgres is not None:
                    world.postgres.stop(signal.SIGQUIT)
                    time.sleep(drawn.uniform(0.1, 1))
                    world.postgres.start()
                else:
                    with locked(world.database_url, drawn.uniform(0.1, 1)):
                        pass
                hit += 2
            case 3:
                victim = drawn.choice(workers)
                victim.send_signal(signal.SIGSTOP)
                time.sleep(LEASE + 1)
                victim.send_signal(signal.SIGCONT)
                hit += 1
            case 4:
                world.teacher.change(
                    faults=[{"kind": drawn.choice(["500", "cut", "half-json"]), "share": 0.1}]
                )
            case 5:
                world.teacher.change(faults=[])
    world.teacher.change(faults=[])
    found = world.check(job, 600 if FULL else 180)
    assert found["again"] <= max(1, hit) * REPEATED_PER_WORKER * 2
    report.note(world.kind, f"all of it at random (seed {seed})", 2 * PROMPTS, found)
