"""The kill matrix. After each fault: every prompt has its completions or a failed row with a reason, none twice; every
pointer's checksum holds; the counters equal a recount; and only what was in flight or unflushed was asked for again.

CI runs it with some hundred prompts; `make faults` with ten thousand, and writes the table in docs/reliability.md.
"""

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from celery import Celery

from tests.faults import report
from tests.faults.world import (
    FULL,
    IN_FLIGHT,
    MOST_LOST,
    PATIENCE,
    PROMPTS,
    SECONDS,
    SHORT,
    Found,
    World,
    fill,
    locked,
    small_disk,
)
from tests.fixtures import processes
from tests.fixtures.service import Service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800 if FULL else 300)]

MakeWorld = Callable[[], World]


KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="module", params=KINDS)
def standing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[World]]:
    """At most one world, used by test after test as long as each leaves it in order."""
    worlds: list[World] = []
    yield worlds
    for world in worlds:
        world.__exit__()


@pytest.fixture
def world(
    standing: list[World], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    kind = request.node.callspec.params["standing"]
    if not standing:
        standing.append(World(kind, tmp_path_factory.mktemp("world")).__enter__())
    world = standing[0]
    world.begin()
    yield world
    whole = False
    try:
        whole = world.tidy()
    finally:
        if not whole:
            standing.remove(world)
            world.__exit__()


def settle(world: World, fault: str, at_risk: int | None = 0) -> Found:
    """Check everything and note it. `at_risk`: what the fault may have taken; None where nobody could count it."""
    found = world.check()
    assert found.failed == 0, world.failures()
    most = MOST_LOST * max(1, len(world.service.workers)) if at_risk is None else at_risk
    assert 0 <= found.again <= most, f"{found.again} samples were made again, {most} were at risk"
    report.note(world.kind, "valkey", fault, found, at_risk)
    return found


def test_no_fault(world: World) -> None:
    world.submit()
    for _ in range(2):
        world.start_worker()
    assert settle(world, "none").lapsed == 0


def test_worker_killed_in_its_calls(world: World) -> None:
    job = world.submit()
    victim, other = world.start_worker(lease=SHORT), world.start_worker()
    world.wait_done(job, 0.3)
    at_risk = world.frozen([victim, other])
    victim.kill()
    victim.wait()
    other.send_signal(signal.SIGCONT)
    settle(world, "kill -9 of a worker, in its calls", at_risk)


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("shard-claimed", "after a claim"),
        ("rows-inserted", "in a checkpoint, before its commit"),
        ("commit", "within a commit"),
        ("checkpoint-committed", "after a checkpoint's commit"),
        ("file-written", "between a segment's file and its commit"),
        ("shard-ended", "in the transaction that ends a shard"),
    ],
)
def test_worker_killed_at_an_instruction(world: World, instruction: str, told: str) -> None:
    world.submit()
    victim = world.start_worker(crash=instruction, lease=SHORT)
    victim.wait(PATIENCE)
    assert victim.returncode == -signal.SIGKILL
    time.sleep(0.3)  # the teacher ends the calls that nobody waits for any more
    at_risk = world.at_risk()
    assert at_risk <= MOST_LOST
    for _ in range(2):
        world.start_worker()
    found = settle(world, f"kill -9 of a worker, {told}", at_risk)
    assert found.again == at_risk  # these, and no other, were asked for again


@pytest.mark.parametrize("standing", KINDS if FULL else KINDS[:1], indirect=True)
def test_a_prompt_that_kills_its_worker_each_time(world: World) -> None:
    """It ends as a failed row after some deaths, and no other prompt of its shard with it."""
    prompts = PROMPTS if FULL else 40
    job = world.submit(prompts)
    deaths = 0
    while world.service.call("GET", f"/v1/jobs/{job}")["status"] not in ("completed", "failed"):
        victim = world.start_worker(crash="poison", lease=1)
        while (code := victim.poll()) is None:
            if world.service.call("GET", f"/v1/jobs/{job}")["status"] == "completed":
                break
            time.sleep(0.1)
        deaths += code == -signal.SIGKILL
        assert deaths < 15, world.logs()
    found = world.check()
    assert (found.completed, found.failed) == (prompts - 1, 1)
    (row,) = world.service.call("GET", f"/v1/jobs/{job}/failures")["items"]
    assert (row["prompt_number"], row["error_kind"]) == (5, "worker-died")
    report.note(world.kind, "valkey", "a prompt that kills its worker each time", found, None)


def test_api_killed_and_started_again(world: World) -> None:
    job = world.submit()
    world.start_worker()
    world.wait_done(job, 0.2)
    assert world.service.api is not None
    world.service.api.kill()
    world.service.api.wait()
    time.sleep(1)
    world.service.start_api()
    settle(world, "kill -9 of the API")


def test_dispatcher_killed(world: World) -> None:
    """Whoever leads dispatch dies; what it alone does (here: cutting what is appended) is done by the next leader."""
    job = world.submit()
    workers = [world.start_worker(lease=SHORT) for _ in range(2)]
    world.wait_done(job, 0.1)
    leader = _leader(world, workers)
    at_risk = world.frozen(workers)
    leader.kill()
    leader.wait()
    next(worker for worker in workers if worker is not leader).send_signal(signal.SIGCONT)
    followed = world.service.call("POST", "/v1/prompt-sets", json={"name": "open"})["id"]
    second = world.service.call(
        "POST",
        "/v1/jobs",
        json={
            "prompt_set": followed,
            "teachers": ["scripted"],
            "follow": True,
            "sampling": {"max_tokens": 8},
        },
    )["id"]
    world.jobs.append(second)
    world.service.call(
        "POST", f"/v1/prompt-sets/{followed}/prompts", json={"prompts": ["one", "two", "three"]}
    )
    time.sleep(1)
    world.service.call("POST", f"/v1/prompt-sets/{followed}/seal")
    settle(world, "kill -9 of the dispatcher", at_risk)
    _leader(world, [worker for worker in workers if worker is not leader])


def _leader(world: World, workers: list[Popen[bytes]]) -> Popen[bytes]:
    end = time.monotonic() + 60
    while True:
        pid = world.leader_pid()
        for worker in workers:
            if worker.pid == pid:
                return worker
        assert time.monotonic() < end, "none of the workers leads"
        time.sleep(0.1)


def test_broker_killed_flushed_and_started_empty(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.start_worker()
    world.wait_done(job, 0.2)
    world.broker.flush()
    world.broker.stop(signal.SIGKILL)
    second = world.submit(100)  # the API takes jobs without a broker
    world.wait(second)  # and workers find them
    world.broker.start()
    third = world.submit(100)
    settle(world, "broker flushed, killed, restarted empty")
    assert third in world.jobs


def test_database_stopped_at_once_or_locked(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.start_worker()
    world.wait_done(job, 0.2)
    if world.postgres is not None:
        world.postgres.stop(signal.SIGQUIT)
        time.sleep(3)
        world.postgres.start()
    else:
        with locked(world.database_url, 3):
            pass
    settle(world, "database stopped at once (PostgreSQL, SIGQUIT) or locked (SQLite) for 3 s")


def test_disk_full_in_the_segment_folder(world: World) -> None:
    with small_disk(world.folder / "storage" / "segments", 2) as disk:
        job = world.submit()
        world.start_worker()
        world.wait_done(job, 0.1)
        ballast = fill(disk)
        time.sleep(3)
        ballast.unlink()
        settle(world, "segment folder full for 3 s")


def test_disk_full_in_the_database_folder(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 64 if FULL else 24) as disk,
        World("sqlite", tmp_path / "w", data=disk) as world,
    ):
        world.begin()
        job = world.submit()
        world.start_worker()
        world.wait_done(job, 0.1)
        ballast = fill(disk)
        time.sleep(3)
        ballast.unlink()
        settle(world, "database folder full for 3 s")


def test_disk_full_in_the_clusters_folder(tmp_path: Path) -> None:
    """PostgreSQL ends itself when it cannot write its log; it is started again when there is room."""
    with tempfile.TemporaryDirectory(prefix="retort-disk-") as folder:
        Path(folder).chmod(0o755)
        with (
            small_disk(Path(folder) / "disk", 400) as disk,
            World("postgresql", tmp_path / "world", cluster=disk) as world,
        ):
            world.begin()
            job = world.submit()
            world.start_worker()
            world.wait_done(job, 0.1)
            ballast = fill(disk)
            time.sleep(3)
            ballast.unlink()
            assert world.postgres is not None
            if not world.postgres.answers():
                world.postgres.stop(signal.SIGQUIT)
                world.postgres.start()
            settle(world, "database folder full for 3 s")


def test_a_zombie_is_fenced(world: World) -> None:
    job = world.submit()
    zombie = world.start_worker(lease=SHORT)
    world.wait_done(job, 0.1)
    at_risk = world.frozen([zombie])
    world.start_worker()
    world.wait_lapsed()
    zombie.send_signal(signal.SIGCONT)
    # Awake again, it sends what it has slots for until a checkpoint or a heartbeat tells that its lease is gone.
    found = settle(world, "SIGSTOP past the lease, then SIGCONT", at_risk + 2 * IN_FLIGHT)
    assert found.lapsed > 0


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
    settle(world, "400 doubled, stale and forged messages")


@pytest.mark.parametrize("standing", ["postgresql"], indirect=True)  # SQLite's clock is the machine's
@pytest.mark.parametrize("hours", [1, -1])
def test_a_workers_clock_is_an_hour_off(world: World, hours: int) -> None:
    world.submit()
    world.start_worker(clock=3600 * hours)
    world.start_worker()
    found = settle(world, f"a worker's clock {hours:+d} h")
    assert (found.again, found.lapsed) == (0, 0)


def test_a_teacher_that_dies_hangs_lies_and_returns(world: World) -> None:
    job = world.submit()
    world.start_worker()
    world.wait_done(job, 0.1)
    world.teacher.kill()
    world.service.wait(f"/v1/jobs/{job}", 30, lambda found: found["status"] == "parked")
    world.teacher.start()
    world.wait_done(job, 0.3)
    for faults in (
        [{"kind": "hang", "share": 0.3, "seconds": 2}],
        [{"kind": "nan-logprobs", "share": 0.3}, {"kind": "429", "share": 0.2}],
        [{"kind": "cut", "share": 0.3}, {"kind": "500", "share": 0.2}],
    ):
        world.teacher.change(faults=faults)
        time.sleep(1)
    world.teacher.change(model="another")
    time.sleep(2)
    world.teacher.change(model="scripted", faults=[])
    found = world.check()
    report.note(world.kind, "valkey", "teacher dies, hangs, lies, returns", found, None)
    failed = world.service.call("GET", f"/v1/jobs/{job}/failures", params={"limit": 200})["items"]
    assert all(row["error_kind"].startswith(("teacher-", "deadline")) for row in failed)
    if failed:
        world.service.call("POST", f"/v1/jobs/{job}/retry", json={})
    assert world.check().failed == 0


def test_two_apis(world: World) -> None:
    """Two API processes serve one database; one is killed amid requests, the other does not notice."""
    other = Service(world.database_url, world.broker.url, world.data, world.service.environment)
    try:
        other.start_api()
        world.submit()
        second = world.submit(50, service=other)
        world.start_worker()
        assert other.call("GET", f"/v1/jobs/{second}")["counts"]["expected"] == 50
        assert other.api is not None
        other.api.kill()
        settle(world, "two API processes, one killed")
    finally:
        other.stop()


def test_a_second_signal_leaves_at_once(world: World) -> None:
    job = world.submit()
    world.teacher.change(delay=2.0)
    victim = world.start_worker(lease=SHORT)
    world.wait_done(job, 0.01)
    victim.terminate()
    time.sleep(0.5)
    victim.terminate()
    started = time.monotonic()
    victim.wait(10)
    assert time.monotonic() - started < 2
    at_risk = world.at_risk()
    world.teacher.change(delay=0.05)
    world.start_worker()
    settle(world, "SIGTERM twice", at_risk)


def test_sigterm_drains(world: World) -> None:
    job = world.submit()
    victim = world.start_worker()
    world.wait_done(job, 0.2)
    victim.terminate()
    assert victim.wait(20) == 0, world.logs()
    world.start_worker()
    assert settle(world, "SIGTERM").again == 0


@pytest.mark.parametrize("seed", [20261125])
def test_everything_at_random(world: World, seed: int) -> None:  # noqa: C901 - one flat list of faults
    """Faults drawn with a seed while a job runs; the full form goes on for minutes."""
    seed = int(os.environ.get("RETORT_FAULT_SEED", seed))
    drawn = random.Random(seed)
    world.submit(n=2)
    workers = [world.start_worker(lease=SHORT) for _ in range(2)]
    end = time.monotonic() + SECONDS
    hits, drawn_faults = 0, 0
    while time.monotonic() < end:
        time.sleep(drawn.uniform(0.3, 1.5))
        drawn_faults += 1
        match drawn.randrange(9):
            case 0:
                victim = drawn.choice(workers)
                processes.stop(victim, signal.SIGKILL)
                workers.remove(victim)
                workers.append(world.start_worker(lease=SHORT))
                hits += 1
            case 1:
                world.broker.flush()
            case 2 if world.postgres is not None:
                world.postgres.stop(signal.SIGQUIT)
                time.sleep(drawn.uniform(0.1, 1))
                world.postgres.start()
                hits += 2
            case 2:
                with locked(world.database_url, drawn.uniform(0.1, 1)):
                    hits += 2
            case 3:
                victim = drawn.choice(workers)
                victim.send_signal(signal.SIGSTOP)
                time.sleep(SHORT + 1)
                victim.send_signal(signal.SIGCONT)
                hits += 1
            case 4:
                # So few that no prompt of a hundred thousand meets one at each of its attempts.
                kind = drawn.choice(["500", "cut", "half-json"])
                world.teacher.change(faults=[{"kind": kind, "share": 0.02}])
            case 5:
                world.teacher.change(faults=[])
            case 6:
                world.teacher.kill()
                time.sleep(drawn.uniform(0.1, 1))
                world.teacher.start()
                hits += 2
            case 7:
                world.broker.stop(signal.SIGKILL)
                time.sleep(drawn.uniform(0.1, 1))
                world.broker.start()
            case 8:
                assert world.service.api is not None
                processes.stop(world.service.api, signal.SIGKILL)
                world.service.start_api()
        if all(world.service.call("GET", f"/v1/jobs/{job}")["status"] == "completed" for job in world.jobs):
            world.submit(n=2)
    world.teacher.change(faults=[])
    found = world.check()
    assert found.failed == 0, world.failures()
    assert found.again <= max(1, hits) * MOST_LOST
    name = f"{drawn_faults} faults at random in {SECONDS:.0f} s, seed {seed}"
    report.note(world.kind, "valkey", name, found, None)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "filesystem"])
def test_other_brokers(tmp_path: Path, broker: str) -> None:
    """The short fault set on every other broker: it dies and comes back empty, a worker is killed, one drains."""
    with World("sqlite", tmp_path / "world", broker=broker) as world:
        world.begin()
        job = world.submit()
        victim, leaver = world.start_worker(lease=SHORT), world.start_worker()
        world.wait_done(job, 0.2)
        world.broker.stop(signal.SIGKILL)
        world.submit(50)
        time.sleep(1)
        world.broker.start()
        world.wait_done(job, 0.4)
        assert not any(worker.poll() for worker in (victim, leaver)), world.logs()
        at_risk = world.frozen([victim, leaver])
        victim.kill()
        victim.wait()
        leaver.send_signal(signal.SIGCONT)
        world.start_worker()
        leaver.terminate()
        assert leaver.wait(20) == 0, world.logs()
        world.broker.flush()
        world.submit(50)
        found = world.check()
        assert found.failed == 0, world.failures()
        assert 0 <= found.again <= at_risk
        report.note("sqlite", broker, "killed and empty again; kill -9 of a worker; SIGTERM", found, at_risk)


def test_the_harness_notices_a_loss(world: World) -> None:
    """A row that vanishes, and a segment that is damaged, do not pass."""
    from sqlalchemy import delete

    from app.db.models import Completion
    from app.db.session import transaction

    world.submit(20)
    world.start_worker()
    world.check()
    segment = next((world.folder / "storage").rglob("*.parquet"))
    content = segment.read_bytes()
    segment.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if world.jobs[0] in str(segment):
        with pytest.raises(Exception, match="damaged"):
            world.check()
    segment.write_bytes(content)
    with transaction(world.engine) as connection:
        connection.execute(
            delete(Completion).where(Completion.job_id == world.jobs[0], Completion.prompt_number == 7)
        )
    with pytest.raises(AssertionError, match="1 missing"):
        world.check()
