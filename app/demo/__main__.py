"""`make demo`: the main job, end to end, on the small real teacher that runs in this process's worker.

Run again, it finds what is there and makes nothing twice. Stopped at any moment, the next run goes on.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from app.client import ClientError, RetortClient, ServiceUnreachable
from app.demo.example import show_example
from app.demo.progress import watch
from app.domain.fingerprints import sha256
from app.settings import Settings
from app.teachers import embedded_model

console = Console(highlight=False)

TEACHER = "embedded"
FORMATS = ("jsonl", "parquet")
JOB: dict[str, Any] = {
    "name": "retort demo",
    "teachers": [TEACHER],
    "sampling": {"temperature": 0.4, "top_p": 0.95, "max_tokens": 120, "seed": 7},
    "top_logprobs": 20,
    "elicit": {"max_reasoning_tokens": 60},
    "intended_use": {"research": True, "redistribution": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.demo", description="The main job, end to end.")
    parser.add_argument("--keep", action="store_true", help="leave the service running at the end")
    given = parser.parse_args()
    settings = Settings()
    try:
        embedded_model.model_path()
        with service(settings, given.keep), client(settings) as api:
            return run(api, settings)
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is lost: `make demo` goes on where it was.")
        return 130
    except (ClientError, ServiceUnreachable) as error:
        console.print(f"[red]{error}[/]\nLogs are in {settings.data_dir / 'logs'}.")
        return 1


def client(settings: Settings) -> RetortClient:
    return RetortClient(settings.service_url, settings.key_file.read_text().strip())


def run(api: RetortClient, settings: Settings) -> int:
    prompts = (files("app.demo") / "prompts.jsonl").read_bytes()
    name = f"retort demo {sha256(prompts).hex()[:8]}"
    prompt_set = bundled_prompt_set(api, name, prompts)
    # The key makes this the same job however often it is asked for, also by two runs at once.
    asked = {**JOB, "prompt_set": prompt_set["id"]}
    jobs = [job for job in api.jobs() if job["prompt_set"] == prompt_set["id"] and job["name"] == JOB["name"]]
    if jobs:
        job = jobs[0]
        console.print(f"Job {job['id']} is there already ({job['status']}): nothing is generated twice.")
    else:
        job = api.submit_job(asked, idempotency_key=f"demo-{prompt_set['id']}")
        console.print(f"Job {job['id']}: {job['counts']['expected']} prompts for teacher {TEACHER!r}.")
    if job["status"] in ("paused", "parked"):
        job = api.act_on_job(job["id"], "resume")
    job = watch(api, job["id"], console)
    if job["status"] == "cancelled":
        console.print("The job was cancelled. Submit another one with `retort submit`.")
        return 1
    target = settings.data_dir / "demo"
    for export_format in FORMATS:
        export(api, job["id"], export_format, target / export_format)
    show_example(api, job, console)
    tell_the_rest(settings, job, target)
    return 0 if job["counts"]["failed"] == 0 else 1


def bundled_prompt_set(api: RetortClient, name: str, prompts: bytes) -> dict[str, Any]:
    for found in api.prompt_sets(name=name, sealed=True):
        console.print(f"Prompt set {found['id']} is there already: {found['n_prompts']} prompts.")
        return found
    half_way = list(api.prompt_sets(name=name, sealed=False))
    made = half_way[0] if half_way else api.create_prompt_set(name, idempotency_key=f"demo-{name}")
    # With the same key, an upload that was cut off goes on where it stopped.
    api.append_prompts(made["id"], prompts.splitlines(True), seal=True, idempotency_key=f"demo-{made['id']}")
    sealed = api.prompt_set(made["id"])
    console.print(f"Prompt set {sealed['id']}: {sealed['n_prompts']} prompts, sealed.")
    return sealed


def export(api: RetortClient, job_id: str, export_format: str, target: Path) -> None:
    """Make the export, or find the one of an earlier run, and fetch its files."""
    made = api.create_export(
        {
            "name": f"demo {export_format}",
            "format": export_format,
            "selection": {"jobs": [job_id]},
            "intended_use": JOB["intended_use"],
        },
        idempotency_key=f"demo-{job_id}-{export_format}",
    )
    while made["status"] in ("ready", "running"):
        time.sleep(0.2)
        made = api.export(made["id"])
    if made["status"] != "completed":
        raise ClientError(500, {"detail": f"the export failed: {made['error']}"})
    for file in made["files"]:
        if not (target / file["name"]).exists():
            api.download(made["id"], file["name"], target / file["name"], file["sha256"])
    console.print(f"Exported {made['n_rows']} rows as {export_format}: {target}")


def tell_the_rest(settings: Settings, job: dict[str, Any], target: Path) -> None:
    rows = target / "jsonl"
    console.print("\n[bold]The files[/]")
    console.print(f"  {rows}/*.jsonl            one completion a line, with its provenance")
    console.print(f"  {target / 'parquet'}/*.parquet   the same, with token ids and top-20 logprobs")
    console.print("\n[bold]How to go on[/]")
    console.print("  .venv/bin/retort up                          the service and its API pages (/docs)")
    console.print(f"  .venv/bin/retort jobs show {job['id']}")
    console.print(
        "  .venv/bin/retort teachers add …              your own teacher: any OpenAI-compatible URL, vLLM"
    )
    console.print("  .venv/bin/retort submit prompts.jsonl --teacher NAME --top-logprobs 20 --watch")
    console.print(
        f"  python -c 'from datasets import load_dataset; "
        f'print(load_dataset("parquet", data_files="{target}/parquet/*.parquet")["train"])\''
    )


@contextmanager
def service(settings: Settings, keep: bool) -> Iterator[None]:
    """The embedded profile: the one that runs already, or one of our own that is stopped at the end."""
    with RetortClient(settings.service_url, None) as probe:
        try:
            probe.ready()
            console.print(f"The service at {settings.service_url} is running already.")
            yield
            return
        except ServiceUnreachable:
            pass
        log = settings.data_dir / "logs" / "up.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, console.status("Starting the service …"):
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.embedded"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ,
            )
            try:
                await_ready(probe, process, log)
            except BaseException:
                stop(process)
                raise
    console.print(f"The service runs at {settings.service_url} (API pages: {settings.service_url}/docs).")
    try:
        yield
    except BaseException:
        stop(process)
        raise
    if keep:
        console.print(f"\nThe service goes on (process {process.pid}); `.venv/bin/retort down` stops it.")
    else:
        stop(process)


def await_ready(probe: RetortClient, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while True:
        if process.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise ServiceUnreachable(f"the service did not start:\n{last}")
        try:
            if probe.ready()["status"] != "unready":
                return
        except ServiceUnreachable:
            pass
        time.sleep(0.1)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
