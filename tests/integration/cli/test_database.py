"""`retort db …` on a data folder without a service."""

from pathlib import Path

import pytest

from tests.integration.cli.conftest import Retort


def test_check_vacuum_backup_and_restore(
    alone: Retort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ("check", "vacuum", f"backup {tmp_path / 'b'}"):
        ended = alone("db", *words.split(), "--json")
        assert (ended.code, ended.problem["exit"]) == (5, 5)
        assert "there is no database" in ended.problem["detail"]
    assert alone("db", "upgrade").code == 0
    assert alone("db", "check", "--json").json == {"jobs": 0, "files": 0, "problems": []}
    told = alone("db", "vacuum", "--json").json
    assert min(told["bytes_before"], told["bytes_after"]) > 0
    made = alone("db", "backup", tmp_path / "b", "--json").json
    assert (made["database"], made["files"]) == ("sqlite", 0)
    again = alone("db", "backup", tmp_path / "b", "--json")
    assert (again.code, again.problem["error"]) == (1, "conflict")
    assert alone("db", "restore", tmp_path / "b").code == 1, "the database is there"
    monkeypatch.setenv("RETORT_DATA_DIR", str(tmp_path / "other"))
    assert "is back" in alone("db", "restore", tmp_path / "b").out
    assert "all in order" in alone("db", "check").out
