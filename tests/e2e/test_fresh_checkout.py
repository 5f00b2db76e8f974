"""What a new user does, in a `git archive` of the last commit, with a shell, make and Python on the PATH, no more."""

import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import processes

pytestmark = [pytest.mark.fresh, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
# What the Makefile and its scripts call. No compiler, no git, no server.
PROGRAMS = ("sh", "make", "awk", "grep", "dirname", "tr")
MADE = (".venv", ".retort", "retort.egg-info", "__pycache__", ".pytest_cache", ".hypothesis")


class Checkout:
    """The unpacked tree, and the bare environment in which its commands run."""

    def __init__(
        self, folder: Path, programs: Path, terminal: pytest.CaptureFixture[str] | None = None
    ) -> None:
        self.folder = folder
        self.terminal = terminal
        kept = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "RETORT_CACHE_"))
        }
        self.environment = kept | {
            "PATH": str(programs),
            "HOME": os.environ["HOME"],
            "LANG": "C.UTF-8",
            "CI": "true",
            "RETORT_PORT": str(processes.free_port()),  # another service may hold the usual one
        }

    def make(self, target: str) -> str:
        """Runs `make target` and returns what it printed; fails the test with that if make does."""
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"make {target} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def files(self) -> set[str]:
        """Everything in it that no tool of ours is known to leave behind."""
        return {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and not any(part in MADE for part in path.relative_to(self.folder).parts)
        }

    def completions(self) -> int:
        (database,) = (self.folder / ".retort").rglob("retort.db")
        with sqlite3.connect(database) as connection:
            count: int = connection.execute("SELECT count(*) FROM completion").fetchone()[0]
        connection.close()
        return count


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    home = tmp_path_factory.mktemp("fresh")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(home / "retort", filter="data")
    programs = home / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, f"{name} is not on the PATH"
        (programs / name).symlink_to(found)
    (programs / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    yield Checkout(home / "retort", programs)
    shutil.rmtree(home)


def test_make_lists_its_targets(checkout: Checkout) -> None:
    shown = checkout.make("help")
    assert "make demo" in shown
    assert "make test " in shown


def test_an_interrupted_installation_leaves_nothing_half_done(checkout: Checkout) -> None:
    """Ctrl-C while pip installs; the demo that follows has to make the environment anew."""
    environment = checkout.folder / ".venv"
    with subprocess.Popen(
        ["make", "env"], cwd=checkout.folder, env=checkout.environment, start_new_session=True
    ) as making:
        while not (environment / "bin" / "pip").exists():
            assert making.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(making.pid, signal.SIGINT)
    assert making.returncode != 0
    assert not (environment / ".complete").exists()


def test_the_demo_does_the_main_job_once(checkout: Checkout) -> None:
    before = checkout.files()
    first = checkout.make("demo")
    stored = checkout.completions()
    assert stored >= 40
    files = sorted((checkout.folder / ".retort" / "demo" / "jsonl").glob("*.jsonl"))
    assert sum(len(file.read_text().splitlines()) for file in files) == stored
    assert str(files[0].parent.relative_to(checkout.folder)) in first.replace("\n", "")
    checkout.make("demo")
    assert checkout.completions() == stored, "a second run generated again"
    assert checkout.files() == before, "the demo left files in the tree that git does not ignore"


def test_the_smoke_tests_pass(checkout: Checkout) -> None:
    assert " passed" in checkout.make("test-smoke")
