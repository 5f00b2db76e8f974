"""`make demo`: prompts in over REST, a small real teacher kept busy, a dataset with logprobs out.

Run again, it finds what is there and makes nothing twice. Stopped at any moment, the next run goes on.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from app.cli.outcome import CommandFailed, settings
from app.client import RetortClient, ServiceRefused, ServiceUnreachable
from app.demo import main_job
from app.demo.example import show_example
from app.demo.service import running_service
from app.errors import RetortError
from app.services.job_views import JobView
from app.settings import Settings
from app.teachers import embedded_model

console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the service running at the end")
    keep: bool = parser.parse_args().keep
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    began = time.monotonic()
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
    except (CommandFailed, RetortError) as error:
        console.print(f"\n[red]error:[/] {escape(error.detail)}", soft_wrap=True)
        return 1
    except (ServiceRefused, ServiceUnreachable) as error:
        console.print(f"\n[red]error:[/] {escape(str(error))}", soft_wrap=True)
        console.print(
            f"Logs are in {given.data_dir / 'logs'}. `make demo` goes on where it was.", soft_wrap=True
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
    retort = Path(sys.executable).parent / "retort"
    shown = retort.relative_to(Path.cwd()) if retort.is_relative_to(Path.cwd()) else retort
    files = folder(given)
    parquet = files / "parquet" / "*.parquet"
    for line in (
        "",
        "[bold]The files[/]",
        f"  {escape(str(files / 'jsonl'))}      one completion a line: messages, reasoning, answer, provenance",
        f"  {escape(str(files / 'parquet'))}    the same, with token ids and the top 20 logprobs of every token",
        "  manifest.json beside them    rows, SHA-256 of every file, teacher, licences, code version",
        "",
        "[bold]How to go on[/]",
        f"  {shown} up       the service: http://{given.host}:{given.port}/docs has its pages"
        if not kept
        else f"  {shown} down     stops the service, which goes on until then",
        f"  {shown} jobs show {job.id}",
        f"  {shown} teachers add qwen --driver vllm --model … --base-url http://…/v1",
        f"  {shown} submit prompts.jsonl --teacher embedded --top-logprobs 20 --watch",
        f'  datasets.load_dataset("parquet", data_files="{escape(str(parquet))}")',
        "",
        f"Done in {seconds:.0f} s.",
    ):
        console.print(line, soft_wrap=True)


def _key(given: Settings) -> str:
    """The demo speaks to the service of this data folder, so the key is that folder's."""
    return given.key_file.read_text().strip()


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
