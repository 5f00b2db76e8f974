"""The benchmark's command: `make bench`, `retort bench …`, `python -m tests.bench …`. See docs/benchmarks.md."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tests.bench import stage as staging
from tests.bench.agreement import compare as compare_runs
from tests.bench.contenders import CONTENDERS
from tests.bench.contenders.base import TEACHER_CORE
from tests.bench.measures import MEASURES
from tests.bench.null_teacher import ROOT, null_teacher
from tests.bench.publish import into_page, save
from tests.bench.readings import Readings
from tests.bench.report import Run, print_run, repeats_of

app = typer.Typer(
    name="bench",
    help="What Retort costs beside a bare client, beside its peers, and how busy it keeps a teacher.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console() if sys.stdout.isatty() else Console(width=180)
err = Console(stderr=True)

RunFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A run's JSON file.")]


@app.command()
def run(
    measures: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(MEASURES)}. Default: all.")
    ] = None,
    contender: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one; may be repeated. {', '.join(CONTENDERS)}. Default: all."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Each contender in turn, so many times.")] = 5,
    peer_repeats: Annotated[
        int | None,
        typer.Option(
            min=0, help="Curator and distilabel, which are slow, take part in so many. Default: all."
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny sizes: whether it works, not how fast.")
    ] = False,
    largest: Annotated[
        int | None,
        typer.Option(min=10_000, help="Rows of the largest job of `scale` and of `export`: 1000000."),
    ] = None,
    flush_sleep: Annotated[
        float,
        typer.Option(
            min=0, help="A deliberate slow-down: seconds that each of Retort's checkpoints takes longer."
        ),
    ] = 0.0,
    folder: Annotated[Path, typer.Option("--out", help="Where the results go.")] = ROOT / "docs" / "bench",
    name: Annotated[str, typer.Option(help="Their name: NAME.json, NAME.svg, NAME.md.")] = "results",
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep the other measures of NAME.json, made before at the same commit."),
    ] = False,
) -> None:
    """Run the measures, print the tables, and write JSON, Markdown and a plot."""
    chosen = _known(measures, MEASURES, "measure")
    wanted = _known(contender, CONTENDERS, "contender")
    sizes = staging.SMOKE if smoke else staging.NORMAL
    if largest is not None:
        sizes = staging.with_largest(sizes, largest)
    made = perform(chosen, wanted, sizes, repeats, flush_sleep, peer_repeats)
    print_run(made, out)
    earlier = folder / f"{name}.json"
    if add and earlier.exists():
        try:
            made = made.beside(Run.load(earlier))
        except ValueError as error:
            name += "-more"
            err.print(f"{earlier} is left as it is, {error}", markup=False, highlight=False)
    save(made, folder, name)
    err.print(f"Written: {folder / name}.json, .md, .svg", highlight=False)


@app.command()
def show(file: RunFile) -> None:
    """Print the tables of a run."""
    print_run(Run.load(file), out)


@app.command()
def compare(first: RunFile, second: RunFile) -> None:
    """Say of two runs, ratio by ratio, whether their ranges meet. Exit code 1 where one does not."""
    rows, agree = compare_runs(Run.load(first), Run.load(second))
    table = Table()
    for heading in ("", "ratio of", str(first), str(second), ""):
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    raise typer.Exit(0 if agree else 1)


@app.command()
def publish(
    file: RunFile,
    again: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A second run at the same commit.")
    ] = None,
    slowed: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A run with --flush-sleep.")
    ] = None,
    docs: Annotated[Path, typer.Option(file_okay=False, help="The documentation.")] = ROOT / "docs",
) -> None:
    """Put a run into the documentation: docs/bench, and its numbers to hold into docs/benchmarks.md."""
    runs = {"results": file, "again": again, "slowed": slowed}
    loaded = {name: Run.load(path) for name, path in runs.items() if path is not None}
    into_page(docs / "benchmarks.md", loaded["results"], loaded.get("again"), loaded.get("slowed"))
    for name, one in loaded.items():
        save(one, docs / "bench", name)
    err.print(f"Written: {docs / 'benchmarks.md'}, {docs / 'bench'}", highlight=False)


def perform(
    measures: tuple[str, ...],
    wanted: tuple[str, ...],
    sizes: staging.Sizes,
    repeats: int,
    flush_sleep: float = 0.0,
    peer_repeats: int | None = None,
) -> Run:
    """Each measure, each case, each contender in turn, and that `repeats` times; peers in the first ones only."""
    if TEACHER_CORE is not None:
        os.sched_setaffinity(0, TEACHER_CORE)
    for name in [name for name in os.environ if name.startswith("RETORT_") and name != "RETORT_CACHE_DIR"]:
        del os.environ[name]  # the settings of whoever calls are not measured
    readings = Readings()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        with null_teacher(folder / "null", list(staging.SHAPES), TEACHER_CORE) as null:
            stage = staging.Stage(folder, sizes, null, wanted, flush_sleep=flush_sleep)
            for repeat in range(repeats):
                stage.peers = peer_repeats is None or repeat < peer_repeats
                for name in measures:
                    for reading in MEASURES[name].run(stage, repeat):
                        readings.add(reading)
                        err.print(
                            f"[{time.monotonic() - began:6.0f} s] {repeat + 1}/{repeats} {name}: {reading.case}, "
                            f"{reading.contender}: {reading.figure} {reading.value:,.2f}",
                            highlight=False,
                            markup=False,
                        )
    told = {
        **_machine(),
        "sizes": "smoke" if sizes is staging.SMOKE else "normal",
        "null teacher": null.title,
        "repeats": repeats_of(readings),
        "calls in flight": stage.in_flight,
    }
    if flush_sleep:
        told["slowed on purpose"] = f"{flush_sleep:g} s in each checkpoint"
    return Run(told, readings, stage.left_out)


def _known(given: list[str] | None, known: dict[str, Any], what: str) -> tuple[str, ...]:
    unknown = [name for name in given or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"there is no {what} {unknown[0]!r}; there are: {', '.join(known)}")
    return tuple(name for name in known if not given or name in given)


def _machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip() or f"retort {version('retort')}",
        "machine": f"{os.cpu_count()} cores, {cpu}, Linux {platform.release()}",
        "load at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("aiohttp", "httpx", "orjson", "sqlalchemy", "pyarrow")},
    }


if __name__ == "__main__":
    app()
