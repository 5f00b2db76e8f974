"""The table of docs/reliability.md is what the record of the fault runs says, and nothing else."""

import json
from pathlib import Path

import pytest

from tests.faults import report

pytestmark = pytest.mark.smoke

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_is_made_from_the_record(tmp_path: Path) -> None:
    record = DOCS / "faults.jsonl"
    assert report.placed(DOCS / "reliability.md") == report.table(record.read_text())
    runs = [json.loads(line) for line in record.read_text().splitlines()]
    assert {run["database"] for run in runs} == {"sqlite", "postgresql"}
    assert {run["broker"] for run in runs} == {"valkey", "redis", "rabbitmq", "filesystem"}
    assert [run for run in runs if run["lost"] or run["doubled"]] == []
    copy = tmp_path / "page.md"
    copy.write_text((DOCS / "reliability.md").read_text())
    report.place(record, copy)
    assert copy.read_text() == (DOCS / "reliability.md").read_text()
