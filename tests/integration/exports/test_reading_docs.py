"""The lines of docs/exports.md that read an export, run on one."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.db.session import connect
from app.storage.places import Storage
from tests.fixtures.completed import Rows, add_job, complete, tokens_of

from .exporting import content, made

PAGE = Path(__file__).resolve().parents[3] / "docs" / "exports.md"
ROWS = Rows(prompts=12, n=2, teachers=("a", "b"), tokens=5, k=3)


def snippet(library: str) -> str:
    """The Python block that begins with this import."""
    (found,) = re.findall(rf"```python\n(import {library}\b.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture
def exported(sqlite_url: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = connect(sqlite_url)
    add_job(database, ROWS)
    complete(database, storage, ROWS)
    view = made(database, storage, file_size={"rows": 20})
    (tmp_path / "data").mkdir()
    for file in view.files:
        (tmp_path / "data" / file.name).write_bytes(content(database, storage, view, file.name))
    database.dispose()
    monkeypatch.chdir(tmp_path)


def test_duckdb(exported: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(snippet("duckdb"), names)
    shown = capsys.readouterr().out
    assert "finish_reason" in shown
    assert "stop" in shown
    first = sorted(names["first"])
    assert len(first) == 48
    wanted = tokens_of(0, 0, 0, ROWS)
    row_id, drawn, rank, candidates, probabilities = first[0]
    assert (row_id, drawn, rank) == ("job_1/0/0/0/0", wanted.token_ids[0], wanted.sampled_rank[0])
    assert candidates == wanted.topk_ids[0].tolist()
    np.testing.assert_allclose(probabilities, np.exp(wanted.topk_logprobs[0]), atol=0.01)


def test_polars(exported: None) -> None:
    names: dict[str, Any] = {}
    exec(snippet("polars"), names)
    found = names["certainty"].sort("teacher").to_dicts()
    assert [(row["teacher"], row["rows"], row["tokens"]) for row in found] == [("a", 24, 120), ("b", 24, 120)]
    drawn = np.concatenate([tokens_of(p, i, 0, ROWS).sampled_logprob for p in range(12) for i in range(2)])
    tail = np.concatenate([tokens_of(p, i, 0, ROWS).tail_logmass for p in range(12) for i in range(2)])
    assert found[0]["mean_logprob"] == pytest.approx(drawn.mean(), abs=1e-5)
    assert found[0]["mass_outside_the_candidates"] == pytest.approx(np.exp(tail).mean(), abs=1e-5)
