"""Makes and keeps the project's virtual environments from its hash-checked locks. `make env` and `make env-test` call it.

    python scripts/environment.py core    .venv       requirements.lock         what running needs
    python scripts/environment.py test    .venv       tests/requirements.lock   that, and what the tests need
    python scripts/environment.py lock    .venv-lock  scripts/requirements.lock the resolver that makes the locks

Runs on a bare Python with pip: standard library only, and old Pythons get far enough to be told that they are too old.
Idempotent: a stamp holds the hash of all that an environment was made from, and a match ends at once. An interrupted run
leaves a mark behind, and the next one starts from nothing, since pip can leave half a package that looks whole.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "Retort needs Python 3.11 or newer; %s is Python %d.%d.\n"
        "Name another one, for example: make env PYTHON=python3.12"
        % ((sys.executable,) + tuple(sys.version_info[:2]))
    )

import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """One environment: where it lies, the lock it is made from, and the names of smaller ones that it contains."""

    folder: str
    lock: str
    with_project: bool
    contains: tuple[str, ...] = ()


ENVIRONMENTS = {
    "core": Environment(".venv", "requirements.lock", with_project=True),
    "test": Environment(".venv", "tests/requirements.lock", with_project=True, contains=("core",)),
    "lock": Environment(".venv-lock", "scripts/requirements.lock", with_project=False),
}


def fingerprint(name: str) -> str:
    """Hash of everything that decides what is in the environment: the lock, the project's metadata, Python, the place."""
    environment = ENVIRONMENTS[name]
    digest = hashlib.sha256()
    for path in (environment.lock, "pyproject.toml") if environment.with_project else (environment.lock,):
        digest.update((ROOT / path).read_bytes())
    digest.update(repr((sys.version_info[:3], sys.base_prefix, str(ROOT))).encode())
    return digest.hexdigest()


def names_in(lock: Path) -> set[str]:
    """Normalized names of the packages that a lock pins."""
    return {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in lock.read_text().splitlines()
        if re.match(r"[A-Za-z0-9]", line)
    }


def run(command: Sequence[str | Path], quiet: bool = False) -> str:
    """Runs `command` in the project folder, without the settings of the caller's shell that would bend pip. Raises if it fails."""
    bending = {"PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in bending},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=True,
    )
    return done.stdout or ""


class Builder:
    """Brings one environment up to date."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.environment = ENVIRONMENTS[name]
        self.folder = ROOT / self.environment.folder
        self.python = self.folder / "bin" / "python"
        self.unfinished = self.folder / ".unfinished"

    def stamp(self, name: str) -> Path:
        return self.folder / f".made-from-{name}.sha256"

    def is_current(self, name: str) -> bool:
        stamp = self.stamp(name)
        return (
            not self.unfinished.exists()
            and self.python.exists()
            and stamp.exists()
            and stamp.read_text() == fingerprint(name)
        )

    def pip(self) -> list[str | Path]:
        """Debian's Python may come with pip and without ensurepip: then the outer pip installs into the environment."""
        flags = ["--disable-pip-version-check", "--no-input"]
        if importlib.util.find_spec("ensurepip") is not None:
            return [self.python, "-m", "pip", *flags]
        if importlib.util.find_spec("pip") is None:
            sys.exit("This Python has neither ensurepip nor pip. On Debian: apt-get install python3-venv python3-pip")
        return [sys.executable, "-m", "pip", "--python", self.python, *flags]

    def is_usable(self) -> bool:
        """Whether there is an environment of this very Python that no interrupted run left half made."""
        if self.unfinished.exists() or not self.python.exists():
            return False
        probe = "import sys; print(sys.version_info[:3], sys.base_prefix)"
        try:
            return run([self.python, "-c", probe], quiet=True).strip() == f"{sys.version_info[:3]} {sys.base_prefix}"
        except (OSError, subprocess.CalledProcessError):
            return False

    def build(self) -> None:
        if not self.is_usable():
            with_pip = importlib.util.find_spec("ensurepip") is not None
            venv.create(self.folder, clear=True, with_pip=with_pip, symlinks=True, prompt="retort")
        self.unfinished.touch()
        pip = self.pip()
        run([*pip, "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", self.environment.lock])
        self.remove_strays(pip)
        if self.environment.with_project:
            run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--editable", "."])
        for name in (self.name, *self.environment.contains):
            self.stamp(name).write_text(fingerprint(name))
        self.unfinished.unlink()

    def remove_strays(self, pip: Sequence[str | Path]) -> None:
        """Takes out what no lock of this folder names any more, so that an old environment cannot hide a missing pin."""
        wanted = {"pip", "retort"}.union(
            *(names_in(ROOT / other.lock) for other in ENVIRONMENTS.values() if other.folder == self.environment.folder)
        )
        listing = "from importlib.metadata import distributions as d; print(*{x.metadata['Name'] for x in d()}, sep='\\n')"
        installed = {re.sub(r"[-_.]+", "-", n).lower() for n in run([self.python, "-c", listing], quiet=True).split()}
        if strays := sorted(installed - wanted):
            run([*pip, "uninstall", "--quiet", "--yes", *strays])


def main(name: str) -> None:
    if name not in ENVIRONMENTS:
        sys.exit(f"No environment is called {name!r}; there are: {', '.join(ENVIRONMENTS)}")
    builder = Builder(name)
    with (ROOT / "pyproject.toml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two makes at once: the second waits, and finds it done
        if builder.is_current(name):
            return
        print(f"Making {builder.environment.folder} from {builder.environment.lock} (about a minute) …", flush=True)
        started = time.monotonic()
        try:
            builder.build()
        except subprocess.CalledProcessError as failure:
            sys.exit(f"\nThe environment could not be made: exit code {failure.returncode} of\n  {' '.join(failure.cmd)}")
        print(f"Made {builder.environment.folder} in {time.monotonic() - started:.0f} s.", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) == 2 else "")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next run starts this environment anew.")
