"""The wheel, built offline from the tree as the Dockerfile does it, holds the whole service and works alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("app", "workers", "migrations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    for package in PACKAGES:
        copytree(ROOT / package, folder / package, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, folder)
    flags = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, "-w", "dist", "."], cwd=folder, check=True)
    (made,) = (folder / "dist").glob("retort-*.whl")
    return made


def test_the_wheel_holds_every_file_of_the_service(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    ours = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours - inside == set(), "package-data in pyproject.toml leaves these out"
    assert {name for name in inside if ".dist-info/" not in name} == ours


def test_the_wheel_finds_its_migrations_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = f"""
import app
assert app.__file__.startswith({str(tmp_path)!r}), app.__file__
from app.db.migrate import current, head, upgrade
upgrade({f"sqlite:///{tmp_path}/new.db"!r})
assert current({f"sqlite:///{tmp_path}/new.db"!r}) == head()
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
