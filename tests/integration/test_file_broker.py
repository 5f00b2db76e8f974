"""Where no Valkey and no Redis starts, wake-ups go through files: the same job, by a real Celery worker."""

from pathlib import Path

from tests.faults.world import ScriptedServer
from tests.fixtures.service import running_service


def test_a_job_through_files(sqlite_url: str, tmp_path: Path) -> None:
    teacher = ScriptedServer(tmp_path, {"tokens": 4})
    teacher.start()
    # An hour between two looks: what the worker finds, it was woken for.
    poll = {"RETORT_ENGINE__POLL_SECONDS": "3600", "RETORT_ENGINE__GRACE_SECONDS": "2"}
    try:
        with running_service(sqlite_url, "filesystem://", tmp_path / "data", settings=poll) as service:
            service.call(
                "POST",
                "/v1/teachers",
                json={"name": "t", "driver": "openai", "model": "scripted", "base_url": f"{teacher.url}/v1"},
            )
            first = service.submit("t", b'"one"\n"two"\n')
            assert service.wait(f"/v1/jobs/{first['id']}", 120)["counts"]["completed"] == 2
            second = service.submit("t", b'"three"\n')
            assert service.wait(f"/v1/jobs/{second['id']}", 120)["counts"]["completed"] == 1
    finally:
        teacher.stop()
