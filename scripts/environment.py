"""Makes and keeps the project's virtual environments from their hash-checked locks (`make env`, `make env-test`).

    python scripts/environment.py core    .venv       requirements.lock          what running needs
    python scripts/environment.py test    .venv       tests/requirements.lock    that, and what the tests need
    python scripts/environment.py lock    .venv-lock  scripts/requirements.lock  the resolver that makes the locks
    python scripts/environment.py NAME    in the cache, from tests/environments/NAME/requirements.lock: what a heavy
                                          suite needs; the last line printed is its Python

Runs on a bare Python with pip: standard library only, and an older Python gets far enough to be told that it is too
old. Idempotent: a stamp holds the hash of all that an environment was made from, and a match ends at once. After an
interrupted run the next one starts from nothing, since pip can leave half a package that looks whole.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 – that is what it checks
    sys.exit(
        f"Retort needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.\n"
        "Name another one, for example: make env PYTHON=python3.12"
    )

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HAS_ENSUREPIP = importlib.util.find_spec("ensurepip") is not None
BEND_PIP = {"PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}


@dataclass(frozen=True)
class Recipe:
    """One environment: where it lies, the lock that it is made from, and the smaller ones that it contains."""

    folder: str
    lock: str
    with_project: bool
    contains: tuple[str, ...] = ()


RECIPES = {
    "core": Recipe(".venv", "requirements.lock", with_project=True),
    "test": Recipe(".venv", "tests/requirements.lock", with_project=True, contains=("core",)),
    "lock": Recipe(".venv-lock", "scripts/requirements.lock", with_project=False),
}


def fingerprint(recipe: Recipe) -> str:
    """Hash of everything that decides what is in the environment: lock, project metadata, Python, place."""
    digest = hashlib.sha256((ROOT / recipe.lock).read_bytes())
    if recipe.with_project:
        digest.update((ROOT / "pyproject.toml").read_bytes())
    digest.update(repr((sys.version_info[:3], sys.base_prefix, str(ROOT))).encode())
    return digest.hexdigest()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(lock: Path) -> set[str]:
    """Names of the packages that a lock pins."""
    lines = lock.read_text().splitlines()
    return {normalized(line.split("==")[0]) for line in lines if re.match(r"[A-Za-z0-9]", line)}


def run(*command: str | Path) -> None:
    """Runs `command` in the project folder, free of the caller's settings that bend pip. Raises if it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in BEND_PIP}
    subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True
    )


def pip_of(python: Path) -> tuple[str | Path, ...]:
    """Debian's Python can come with pip and without ensurepip: then the outer pip installs into the environment."""
    flags = ("--disable-pip-version-check", "--no-input")
    if HAS_ENSUREPIP:
        return (python, "-m", "pip", *flags)
    if importlib.util.find_spec("pip") is None:
        sys.exit("This Python has neither ensurepip nor pip. On Debian: apt-get install python3-pip")
    return (sys.executable, "-m", "pip", "--python", python, *flags)


class Environment:
    """One environment on disk, to be brought up to date."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.recipe = RECIPES[name]
        self.folder = ROOT / self.recipe.folder
        self.python = self.folder / "bin" / "python"
        self.complete = self.folder / ".complete"

    def stamp(self, name: str) -> Path:
        return self.folder / f".made-from-{name}.sha256"

    def is_current(self) -> bool:
        stamp = self.stamp(self.name)
        return self.is_usable() and stamp.exists() and stamp.read_text() == fingerprint(self.recipe)

    def is_usable(self) -> bool:
        """Whether this very Python made it and no interrupted run left it half done."""
        home = self.folder / "pyvenv.cfg"
        return (
            self.complete.exists()
            and os.access(self.python, os.X_OK)
            and home.exists()
            and f"version = {'.'.join(map(str, sys.version_info[:3]))}\n" in home.read_text()
        )

    def build(self) -> None:
        if not self.is_usable():
            venv.create(self.folder, clear=True, with_pip=HAS_ENSUREPIP, symlinks=True, prompt="retort")
        self.complete.unlink(missing_ok=True)
        pip = pip_of(self.python)
        run(*pip, "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", self.recipe.lock)
        if strays := self.strays():
            run(*pip, "uninstall", "--quiet", "--yes", *strays)
        if self.recipe.with_project:
            run(
                *pip,
                "install",
                "--quiet",
                "--no-deps",
                "--no-index",
                "--no-build-isolation",
                "--editable",
                ".",
            )
        for name in (self.name, *self.recipe.contains):
            self.stamp(name).write_text(fingerprint(RECIPES[name]))
        self.complete.touch()

    def strays(self) -> list[str]:
        """What is installed and in no lock of this folder any more; left alone, it could hide a missing pin."""
        locks = {recipe.lock for recipe in RECIPES.values() if recipe.folder == self.recipe.folder}
        wanted = {"pip", "retort"}.union(*(names_in(ROOT / lock) for lock in locks))
        metadata = self.folder.glob("lib/python*/site-packages/*.dist-info")
        installed = {normalized(path.name.split("-")[0]) for path in metadata}
        return sorted(installed - wanted)


SUITES = ROOT / "tests" / "environments"
CPU_BUILDS_OF_TORCH = "https://download.pytorch.org/whl/cpu"
FORGET_SECONDS = 4 * 3600


def cache_dir() -> Path:
    """`RETORT_CACHE_DIR`, else a folder in the user's cache: several checkouts share what is in it."""
    given = os.environ.get("RETORT_CACHE_DIR")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "retort"


def suite_python(name: str) -> Path:
    """The Python of the environment `tests/environments/<name>`, made now unless it is in the cache.

    The lock is whole, so nothing is resolved: what it leaves out stays out. Safe to call twice at a time.
    Raises `SystemExit` with a sentence where it cannot be made.
    """
    lock = SUITES / name / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes())
    digest.update(repr((sys.version_info[:3], sys.base_prefix)).encode())
    home = cache_dir() / "environments"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{name}-{digest.hexdigest()[:16]}"
    python, complete = folder / "bin" / "python", folder / ".complete"
    with (home / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (complete.exists() and os.access(python, os.X_OK)):
            print(f"Making {folder} from {lock.relative_to(ROOT)} (minutes) …", file=sys.stderr, flush=True)
            started = time.monotonic()
            venv.create(folder, clear=True, with_pip=HAS_ENSUREPIP, symlinks=True, prompt=name)
            _install_whole(pip_of(python), lock)
            print(f"Made it in {time.monotonic() - started:.0f} s.", file=sys.stderr, flush=True)
        complete.touch()
        _forget_old(home, name, folder)
    return python


def _install_whole(pip: tuple[str | Path, ...], lock: Path) -> None:
    """A `+cpu` build of torch is on PyTorch's own index, which is asked only where the usual places have none."""
    flags = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:")
    command = (*pip, "install", *flags, "-r", lock)
    try:
        run(*command)
    except subprocess.CalledProcessError as failure:
        if not re.search(r"(?m)^torch==\S+\+cpu", lock.read_text()):
            sys.exit(f"\nNot made: exit code {failure.returncode} of\n  {' '.join(failure.cmd)}")
        print(f"Once more, with {CPU_BUILDS_OF_TORCH} …", file=sys.stderr, flush=True)
        try:
            run(*command, "--extra-index-url", CPU_BUILDS_OF_TORCH)
        except subprocess.CalledProcessError as again:
            sys.exit(f"\nNot made: exit code {again.returncode} of\n  {' '.join(again.cmd)}")


def _forget_old(home: Path, name: str, current: Path) -> None:
    """Environments of other locks go when nobody has used them for hours: each is gigabytes, and made in minutes."""
    for other in home.glob(f"{name}-{'[0-9a-f]' * 16}"):
        mark = other / ".complete"
        if (
            other != current
            and time.time() - (mark if mark.exists() else other).stat().st_mtime > FORGET_SECONDS
        ):
            shutil.rmtree(other)


def main(name: str) -> None:
    suites = sorted(path.parent.name for path in SUITES.glob("*/requirements.lock"))
    if name in suites:
        print(suite_python(name))
        return
    if name not in RECIPES:
        sys.exit(f"No environment is called {name!r}; there are: {', '.join([*RECIPES, *suites])}")
    environment = Environment(name)
    with (ROOT / "pyproject.toml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two makes at once: the second waits, and finds it done
        if environment.is_current():
            return
        print(
            f"Making {environment.recipe.folder} from {environment.recipe.lock} (about a minute) …",
            flush=True,
        )
        started = time.monotonic()
        try:
            environment.build()
        except subprocess.CalledProcessError as failure:
            sys.exit(f"\nNot made: exit code {failure.returncode} of\n  {' '.join(failure.cmd)}")
        print(f"Made {environment.recipe.folder} in {time.monotonic() - started:.0f} s.", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) == 2 else "")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next run makes it anew.")
