"""A tiny model's own samples, exported in every format, and its trainers' code in an environment of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.db.session import connect, session
from app.domain.columns import TokenColumns, token_columns
from app.policy.rules import PolicyRules
from app.services import export
from app.services.export import ExportSpec
from app.storage.places import open_storage
from scripts.environment import SUITES, suite_python
from tests.fixtures.completed import Rows, add_job, complete

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_DISABLED": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "CUDA_VISIBLE_DEVICES": "",
}
VOCABULARY, TOP_K = 320, 16


def in_environment(script: str, *arguments: str | Path) -> str:
    """What a script of the trainers' environment prints. Raises `AssertionError` with its last words."""
    folder = SUITES / "trainers"
    done = subprocess.run(
        [suite_python("trainers"), folder / script, *arguments],
        env={**os.environ, **QUIET},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1500,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{script} {arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Capture:
    """`model`: the folder of the tiny model; `columns`: its samples."""

    model: Path
    columns: tuple[TokenColumns, ...]

    def answers(self) -> tuple[str, ...]:
        return tuple(" ".join(f"w{i - 8}" if i >= 8 else "w0" for i in c.token_ids) for c in self.columns)


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    folder = tmp_path_factory.mktemp("tiny")
    in_environment("capture.py", folder)
    found = np.load(folder / "capture.npz")
    columns = tuple(
        token_columns(
            found[f"tokens_{row}"],
            found[f"ids_{row}"],
            found[f"logprobs_{row}"],
            found[f"own_{row}"],
            TOP_K,
            prompt_ids=found[f"prompt_{row}"],
        )
        for row in range(sum(name.startswith("prompt_") for name in found))
    )
    return Capture(folder / "model", columns)


Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(capture: Capture, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Exported:
    """`exported(format, **options)`: the folder of an export of the tiny model's samples."""
    home = tmp_path_factory.mktemp("service")
    shutil.copyfile(migrated_sqlite, home / "retort.db")
    database, storage = connect(f"sqlite:///{home / 'retort.db'}"), open_storage(str(home / "storage"))
    rows = Rows(
        prompts=len(capture.columns),
        tokens=1,
        k=TOP_K,
        vocab_size=VOCABULARY,
        captured=capture.columns,
        answers=capture.answers(),
    )
    bodies = [{"prompt": f"w{i} w{i + 1}", "license": "CC0-1.0"} for i in range(rows.prompts)]
    add_job(database, rows, bodies)
    complete(database, storage, rows)

    def make(name: str, **options: Any) -> Path:
        spec = {"format": name, "selection": {"jobs": [rows.id]}, "options": options}
        with session(database, writes=True) as work:
            asked = export.create(work, "prj_1", "key_1", ExportSpec.model_validate(spec), PolicyRules())
        assert export.run_next(database, storage, "w1", 60, lambda: False, park_seconds=0)
        target = tmp_path_factory.mktemp(name)
        with session(database, writes=False) as work:
            made = export.get(work, "prj_1", asked.id)
            assert made.status == "completed", made.error
            for file in made.files:
                path, _ = export.file_of(work, "prj_1", asked.id, file.name)
                with storage.open(path) as source:
                    (target / file.name).write_bytes(source.read())
        return target

    return make


Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def check(capture: Capture, exported: Exported) -> Check:
    """`check(format, **options)`: what the trainer's own code says of the export, or that `by` another name."""

    def run(name: str, by: str | None = None, **options: Any) -> dict[str, Any]:
        printed = in_environment("check.py", by or name, capture.model, exported(name, **options))
        found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
        return found

    return run
