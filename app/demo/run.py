"""The demo from its beginning to its end: a service, the main job, an example, and what to do next."""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from app.cli.outcome import ending_of, key_of, settings
from app.client import RetortClient
from app.demo import main_job
from app.demo.example import show_example
from app.demo.service import running_service
from app.services.job_views import JobView
from app.settings import Settings
from app.teachers import embedded_model
from workers.embedded import TEACHER

console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.demo", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the service running at the end")
    keep: bool = parser.parse_args().keep
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _as_ctrl_c)
    began = time.monotonic()
    given: Settings | None = None
    console.print("[bold]Retort demo[/]: prompts → a durable job → a real, very small teacher → a dataset\n")
    try:
        given = settings()
        embedded_model.model_path()
        with running_service(given, keep, console) as url, RetortClient(url, _key(given)) as api:
            job = run(api, given)
        tell_the_rest(given, job, time.monotonic() - began, keep)
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is lost: `make demo` goes on where it was.")
        return 130
    except Exception as error:
        ending = ending_of(error)
        if ending is None:
            raise
        console.print(f"\n[red]error:[/] {escape(ending[0])}", soft_wrap=True)
        if given is not None and (logs := given.data_dir / "logs").is_dir():
            console.print(
                f"Logs are in {escape(str(logs))}. `make demo` goes on where it was.", soft_wrap=True
            )
        return 1
    return 0 if job.counts.failed == 0 else 1


def run(api: RetortClient, given: Settings) -> JobView:
    """The main job: prompt set, job, datasets, one example."""
    prompt_set = main_job.prompt_set(api, console)
    job = main_job.finished_job(api, prompt_set, console)
    main_job.datasets(api, job, folder(given), console)
    show_example(api, job, console)
    return job


def folder(given: Settings) -> Path:
    return given.data_dir / "demo"


def tell_the_rest(given: Settings, job: JobView, seconds: float, kept: bool) -> None:
    retort = _shown(Path(sys.executable).parent / "retort")
    files = folder(given)
    service = (
        (f"{retort} down", "stops the service, which goes on until then")
        if kept
        else (f"{retort} up", f"the service; its pages: http://{given.host}:{given.port}/docs")
    )
    sections = {
        "The files": (
            (f"{files / 'jsonl'}", "a completion a line: messages, reasoning, answer, origin"),
            (f"{files / 'parquet'}", "the same, with token ids and top 20 logprobs"),
            ("manifest.json beside them", "rows, SHA-256, teacher, licences, code version"),
        ),
        "How to go on": (
            service,
            (f"{retort} jobs show {job.id}", "this job: counts, speed, teacher"),
            (f"{retort} submit prompts.jsonl --teacher {TEACHER} --watch", "your own prompts"),
            (f"{retort} teachers add --help", "a teacher of your own: a vLLM server, an API"),
            (f"{retort} doctor", "what is missing or misconfigured, and how to mend it"),
            (
                f'datasets.load_dataset("parquet", data_files="{files / "parquet" / "*.parquet"}")',
                "in Python",
            ),
        ),
    }
    for title, entries in sections.items():
        console.print(f"\n[bold]{title}[/]")
        for what, about in entries:
            console.print(f"  {escape(what)}", soft_wrap=True)
            console.print(f"      {escape(about)}", style="dim", soft_wrap=True)
    console.print(f"\nDone in {seconds:.0f} s.")


def _shown(program: Path) -> Path:
    """As a person types it from here."""
    return program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program


def _key(given: Settings) -> str | None:
    """The demo speaks to the service of this data folder, so the key is that folder's."""
    return key_of(given.model_copy(update={"api_key": None}))


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
