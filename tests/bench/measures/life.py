"""A job's life: prompts taken in, the first answer, reads of the API while it runs, the export."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import orjson

from tests.bench.contenders import WRITER
from tests.bench.contenders.base import CORE, Task
from tests.bench.contenders.retort import BenchService
from tests.bench.null_teacher import ROOT
from tests.bench.process_tree import Meter, pinned
from tests.bench.readings import Reading
from tests.bench.stage import SHAPES, Stage

TITLE = "A job's life"
SUBMISSION, FIRST, EXPORT = (
    "prompts taken in",
    "submitted to first answer recorded",
    "export to Parquet, k = 20",
)


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    shape = SHAPES[1]
    for contender in stage.services():
        with stage.scratch() as folder, contender.running(folder, stage.in_flight) as service:
            service.register(stage.null.url(shape))
            found: list[tuple[str, str, dict[str, float]]] = [
                (SUBMISSION, contender.name, _submitted(service, stage.sizes.submitted))
            ]
            task = Task(stage.sizes.exported, shape, stage.null.url(shape), stage.in_flight, folder)
            job, first, reads = _run_and_read(service, task)
            found.append((FIRST, contender.name, {"first_seconds": first}))
            found += [
                (f"GET {path} while it runs", contender.name, figures) for path, figures in reads.items()
            ]
            exported, files = _export(service, job, folder / "files")
            found.append((EXPORT, contender.name, exported))
            if contender.database == "sqlite":
                found.append((EXPORT, WRITER, bare_writer(files, folder / "bare.parquet")))
        for case, name, figures in found:
            for figure, value in figures.items():
                yield Reading("life", case, name, figure, repeat, value)


def _submitted(service: BenchService, rows: int) -> dict[str, float]:
    """A stream of so many prompts into a set, until it is sealed."""
    prompts = Task(rows, SHAPES[1], "", 1, Path()).prompts()
    with Meter(service.parts) as meter:
        service.load_prompts(prompts)
    return {
        "rows_per_second": rows / meter.used.wall,
        "cpu_us_per_row_all": sum(meter.used.cpu.values()) / rows * 1e6,
        "peak_mb": meter.used.peak["API"] / 1e6,
    }


def _run_and_read(service: BenchService, task: Task) -> tuple[str, float, dict[str, dict[str, float]]]:
    """(job, seconds to its first recorded answer, path → latencies of reading it while the job runs)."""
    prompt_set = service.load_prompts(task.prompts())
    began = time.monotonic()
    job = service.submit_job(prompt_set, task)
    while not service.call("GET", f"/v1/jobs/{job}")["counts"]["completed"]:
        time.sleep(0.01)
    first = time.monotonic() - began
    paths = ("/v1/jobs/{job}", "/v1/jobs/{job}/completions", "/v1/jobs")
    taken: dict[str, list[float]] = {path: [] for path in paths}
    status = "running"
    while status in ("ready", "running", "finalizing"):
        for path in paths:
            start = time.monotonic()
            answer = service.call("GET", path.format(job=job))
            taken[path].append(time.monotonic() - start)
            status = answer.get("status", status)
        time.sleep(0.1)
    service.until_ended(job)
    return job, first, {path: _latencies(seconds) for path, seconds in taken.items()}


def _latencies(seconds: list[float]) -> dict[str, float]:
    found = [s * 1000 for s in seconds]
    if len(found) < 2:
        found *= 2
    cuts = quantiles(found, n=20, method="inclusive")
    return {"p50_ms": cuts[9], "p95_ms": cuts[18], "max_ms": max(found)}


def _export(service: BenchService, job: str, target: Path) -> tuple[dict[str, float], list[Path]]:
    """The worker's export of the job, from the request to the last file; the files, downloaded."""
    spec = {"format": "parquet", "selection": {"jobs": [job]}}
    with Meter(service.parts) as meter:
        made = service.call("POST", "/v1/exports", json=spec)
        while (made := service.call("GET", f"/v1/exports/{made['id']}"))["status"] in ("ready", "running"):
            time.sleep(0.05)
    if made["status"] != "completed":
        raise RuntimeError(f"the export failed: {made}\n{service.logs()}")
    files = service.download(made, target)
    return {
        "rows_per_second": made["n_rows"] / meter.used.wall,
        "cpu_us_per_row": meter.used.cpu["worker"] / made["n_rows"] * 1e6,
        "peak_mb": meter.used.peak["worker"] / 1e6,
    }, [file for file in files if file.suffix == ".parquet"]


def bare_writer(files: list[Path], target: Path, cores: set[int] | None = CORE) -> dict[str, float]:
    """pyarrow alone, writing the same columns in the same way."""
    command = [sys.executable, "-m", "tests.bench.bare_writer", str(target), *map(str, files)]
    with pinned(cores):
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    rows = int(process.stdout.readline())
    with Meter({"client": [process.pid]}) as meter:
        process.stdin.write(b"go\n")
        process.stdin.flush()
        written = orjson.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(30)
    assert written["rows"] == rows
    return {
        "rows_per_second": rows / meter.used.wall,
        "cpu_us_per_row": meter.used.cpu["client"] / rows * 1e6,
        "peak_mb": meter.used.peak_total / 1e6,
    }
