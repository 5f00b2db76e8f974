"""Secrets are references, read at the last moment."""

from pathlib import Path

import pytest

from app.errors import InvalidInput, TeacherRefusedKey
from app.teachers.secrets import resolve


def test_none_is_none() -> None:
    assert resolve(None) is None


def test_from_the_environment_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_KEY", " sk-1\n")
    (tmp_path / "key").write_text("sk-2\n")
    by_name, by_file = resolve("env:A_KEY"), resolve(f"file:{tmp_path / 'key'}")
    assert by_name is not None
    assert by_file is not None
    assert (by_name.get_secret_value(), by_file.get_secret_value()) == ("sk-1", "sk-2")
    assert "sk-" not in repr(by_name) + str(by_file)


@pytest.mark.parametrize("reference", ["sk-12345", "env:", "file:", "vault:x", ""])
def test_what_is_no_reference_is_not_repeated(reference: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(reference)
    assert "env:NAME or file:/path" in caught.value.detail
    assert "sk-" not in caught.value.detail


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "is empty"), (" \n", "is empty"), ("a\nb", "no header can carry"), ("ключ", "no header can carry")],
)
def test_what_is_no_secret(monkeypatch: pytest.MonkeyPatch, content: str, told: str) -> None:
    monkeypatch.setenv("A_KEY", content)
    with pytest.raises(TeacherRefusedKey, match=told):
        resolve("env:A_KEY")


def test_what_is_not_there_or_not_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(TeacherRefusedKey, match="the environment variable A_KEY"):
        resolve("env:A_KEY")
    with pytest.raises(TeacherRefusedKey, match="No such file"):
        resolve(f"file:{tmp_path / 'none'}")
    with pytest.raises(TeacherRefusedKey, match="Is a directory"):
        resolve(f"file:{tmp_path}")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(TeacherRefusedKey, match="not text"):
        resolve(f"file:{tmp_path / 'bytes'}")
