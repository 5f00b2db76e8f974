"""A real student learns more from the real teacher's distributions than from the same answers as tokens alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from app.teachers import embedded_model
from tests.fixtures.service import running_service

from .conftest import in_environment

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(1800)]

PROMPTS = Path(__file__).resolve().parents[2] / "app" / "demo" / "prompts.jsonl"


def test_a_student_learns_more_from_soft_labels(
    migrated_sqlite: Path, broker_url: str, tmp_path: Path
) -> None:
    """Job, export and training as a user would run them. Prints what it found: `-s` shows it."""
    embedded_model.fetch()
    database = tmp_path / "retort.db"
    shutil.copyfile(migrated_sqlite, database)
    with running_service(f"sqlite:///{database}", broker_url, tmp_path / "data") as service:
        teacher = {"driver": "embedded", "model": embedded_model.MODEL, "license": embedded_model.LICENSE}
        service.call(
            "POST", "/v1/teachers", json={"name": "small", "revision": embedded_model.REVISION, **teacher}
        )
        sampling = {"temperature": 1.0, "max_tokens": 48, "seed": 3}
        job = service.submit("small", PROMPTS.read_bytes(), n=2, top_logprobs=100, sampling=sampling)
        job = service.wait(f"/v1/jobs/{job['id']}", 900)
        assert (job["counts"]["failed"], job["status"]) == (0, "completed")
        asked = {
            "format": "parquet",
            "selection": {"jobs": [job["id"]]},
            "split": {"train": 0.7, "validation": 0.15, "test": 0.15},
        }
        made = service.call("POST", "/v1/exports", json=asked)
        made = service.wait(f"/v1/exports/{made['id']}", 60)
        service.download(made, tmp_path / "export")
    found = json.loads(
        in_environment("student.py", embedded_model.model_path(), tmp_path / "export").splitlines()[-1]
    )
    sys.stdout.write(f"{json.dumps(found)}\n")
    soft, hard = found["soft"], found["hard"]
    assert min(found["tokens"].values()) > 300
    assert soft["before"] == hard["before"]
    assert hard["test"] < hard["before"], "the tokens alone teach something, too"
    assert soft["test"] < hard["test"]
