"""Rules of the house that neither ruff, mypy nor import-linter can hold."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
OURS = ("app", "workers", "migrations")
ROUTE = ROOT / "app" / "teachers" / "inside_vllm" / "retort_route"
# Made or kept by running things, not by us.
NOT_SOURCE = re.compile(
    r"\.(git|venv.*|retort|hypothesis|.*_cache)$|__pycache__$|.*\.egg-info$|build$|dist$|reports$"
)
COMMIT = ("app/db/session.py", "app/api/dependencies.py")  # transaction() and the session dependency
# Imported under their own name, installed as a part of a declared dependency that is built on them.
PART_OF = {
    "boolean-py": "license-expression",
    "click": "typer",
    "kombu": "celery",
    "pydantic-core": "pydantic",
    "starlette": "fastapi",
}


def source_files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if NOT_SOURCE.match(path.name):
            continue
        if path.is_dir():
            yield from source_files(path)
        else:
            yield path


def modules(*packages: str) -> list[Path]:
    return [path for package in packages for path in source_files(ROOT / package) if path.suffix == ".py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """First parts of all absolute imports, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def declared(*extras: str) -> set[str]:
    """Names of the project's dependencies, and of those that the extras bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return {canonicalize_name(Requirement(line).name) for line in lines}


_installed = cache(packages_distributions)


def distributions_of(module: str) -> set[str]:
    names = _installed().get(module, [module])
    return {PART_OF.get(canonicalize_name(found), canonicalize_name(found)) for found in names}


def test_no_file_names_a_place_outside_the_project() -> None:
    outside = re.compile("|".join(("/" + r"work(?![\w-])", r"\.\./" + "shared", "/" + "root/")))
    found = [
        f"{name(path)}: {match.group()}"
        for path in source_files()
        if (match := outside.search(path.read_bytes().decode("utf-8", errors="replace")))
    ]
    assert found == []


def test_modules_are_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in modules("app", "workers")}
    long = {module: lines for module, lines in lengths.items() if lines > 500}
    assert long == {}


def test_no_module_or_class_has_a_name_that_says_nothing() -> None:
    empty_module = re.compile(r"^(utils?|helpers?|misc|common|data|managers?|handlers?)$")
    empty_class = re.compile(r"(Manager|Handler|Helper|Processor|Utils?)$")
    found = [name(path) for path in modules(*OURS) if empty_module.match(path.stem)]
    for path in modules(*OURS):
        classes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))
        found += [f"{name(path)}: {made.name}" for made in classes if empty_class.search(made.name)]
    assert found == []


def test_only_transaction_and_the_session_dependency_commit() -> None:
    found = [
        f"{name(path)}:{node.lineno}"
        for path in modules("app", "workers")
        if name(path) not in COMMIT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit"
    ]
    assert found == [], f"commit at the edge, in {COMMIT}"


def test_every_import_is_declared() -> None:
    known = declared("vllm", "s3", "hub")
    found = {
        f"{name(path)}: {module}"
        for path in modules(*OURS)
        for module in imported(ast.parse(path.read_text()))
        if module not in sys.stdlib_module_names
        and module not in (*OURS, "tests")
        and not distributions_of(module) & known
    }
    assert found == set(), "an import that no dependency in pyproject.toml brings"


def test_the_service_imports_no_test_code() -> None:
    found = [name(path) for path in modules(*OURS) if "tests" in imported(ast.parse(path.read_text()))]
    assert found == []


def test_nothing_imports_torch_outside_the_in_process_driver() -> None:
    heavy = {"torch", "transformers", "vllm"}
    allowed = {"app/teachers/vllm_engine.py", *(name(path) for path in ROUTE.glob("*.py"))}
    found = {name(path) for path in modules(*OURS) if heavy & set(imported(ast.parse(path.read_text())))}
    assert found <= allowed


def test_the_route_inside_vllm_stands_alone() -> None:
    """It runs in vLLM's own environment, where nothing of ours is installed."""
    files = list(ROUTE.glob("*.py"))
    assert files
    foreign = {module for path in files for module in imported(ast.parse(path.read_text()))}
    assert foreign - set(sys.stdlib_module_names) <= {"numpy", "vllm"}
    above = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if getattr(node, "level", 0) > 1
    ]
    assert above == [], "an import from outside its own folder"


def test_tests_fake_at_the_transport_and_never_patch() -> None:
    found = []
    for path in modules("tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("unittest.mock", "unittest"):
                found += [
                    name(path)
                    for alias in node.names
                    if node.module == "unittest.mock" or alias.name == "mock"
                ]
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "setattr"
                and "monkeypatch" in ast.dump(node.value)
            ):
                found.append(f"{name(path)}:{node.lineno}")
    assert found == []


def test_decision_records_have_a_number_and_a_title() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [record.name[:3] for record in records]
    assert records
    assert [r.name for r in records if not re.fullmatch(r"\d{3}-[a-z0-9-]+\.md", r.name)] == []
    assert len(set(numbers)) == len(numbers), "two records share a number"
    assert [r.name for r in records if not r.read_text().startswith("# ")] == []


def test_migrations_have_one_head() -> None:
    from alembic.script import ScriptDirectory

    from app.db.migrate import config

    assert len(ScriptDirectory.from_config(config("")).get_heads()) == 1
