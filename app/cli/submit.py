"""`retort submit` and `retort watch`."""

import hashlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.outcome import AsJson, Exit, client, err, fail, out, show
from app.client import RetortClient
from app.demo.progress import ENDED
from app.demo.progress import watch as follow

_ERRORS_SHOWN = 10


def submit(
    file: Annotated[
        Path,
        typer.Argument(help="Prompts as JSONL: one object or string a line.", exists=True, dir_okay=False),
    ],
    teacher: Annotated[
        list[str], typer.Option(help="Name of a registered teacher; may be given several times.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of set and job. Default: the file's.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Samples per prompt and teacher.")] = 1,
    top_logprobs: Annotated[int, typer.Option(min=0, help="Candidates kept per token; 0: none.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Sample i is asked with seed + i.")] = None,
    elicit: Annotated[
        int | None, typer.Option(help="Draw a reasoning trace of up to so many tokens.")
    ] = None,
    priority: Annotated[int, typer.Option(help="A higher one goes first.")] = 0,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Cap of this job's calls in flight.")
    ] = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Take equal samples from earlier jobs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Take nothing if any row does not parse.")] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Intended use: the student earns money.")
    ] = False,
    competing: Annotated[
        bool, typer.Option("--competing", help="Intended use: it competes with the teacher's maker.")
    ] = False,
    redistribution: Annotated[
        bool, typer.Option("--redistribution", help="Intended use: data or student are given to others.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Upload and estimate; make nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a file of prompts and have teachers answer them.

    An upload that was cut off goes on when it is sent again; within a day, the same file is not stored twice.
    """
    with client() as api:
        prompt_set = _uploaded(api, file, name or file.stem, strict)
        job: dict[str, Any] = {
            "name": name or file.stem,
            "prompt_set": prompt_set["id"],
            "teachers": teacher,
            "sampling": {"temperature": temperature, "max_tokens": max_tokens},
            "n": n,
            "top_logprobs": top_logprobs,
            "priority": priority,
            "reuse": reuse,
            "intended_use": {
                "commercial": commercial,
                "competing": competing,
                "redistribution": redistribution,
                "research": not (commercial or competing),
            },
        }
        if seed is not None:
            job["sampling"]["seed"] = seed
        if elicit is not None:
            job["elicit"] = {"max_reasoning_tokens": elicit}
        if max_in_flight is not None:
            job["max_in_flight"] = max_in_flight
        made = api.submit_job(job, dry_run=dry_run)
        if dry_run:
            show(made, True, lambda: None)
            return
        if not as_json:
            out.print(f"Job {made['id']}: {made['counts']['expected']} completions to make.")
        if watch:
            made = follow(api, made["id"], err)
        elif not as_json:
            out.print(f"`retort watch {made['id']}` shows its progress.")
        if as_json:
            show(made, True, lambda: None)
        _exit_by(made)


def _uploaded(api: RetortClient, file: Path, name: str, strict: bool) -> dict[str, Any]:
    with file.open("rb") as content:
        key = f"{name}-{hashlib.file_digest(content, 'sha256').hexdigest()}"
        content.seek(0)
        made = api.create_prompt_set(name, idempotency_key=hashlib.sha256(key.encode()).hexdigest())
        answer = api.append_prompts(
            made["id"], content, seal=True, strict=strict, idempotency_key=f"{made['id']}{'-strict' * strict}"
        )
    for row in answer["errors"][:_ERRORS_SHOWN]:
        err.print(f"[yellow]line {row['line']}:[/] {row['reason']}", markup=True)
    if answer["n_rejected"] > _ERRORS_SHOWN:
        err.print(
            f"… and {answer['n_rejected'] - _ERRORS_SHOWN} more: `retort prompt-sets errors {made['id']}`"
        )
    if answer["n_license_assumed"]:
        err.print(
            f"[yellow]{answer['n_license_assumed']} rows name no licence[/] and took the project's default."
        )
    if not answer["n_added"]:
        fail(f"no row of {file} is a prompt", Exit.REFUSED)
    err.print(f"Prompt set {made['id']}: {answer['n_added']} prompts, {answer['n_rejected']} rows rejected.")
    return made


def watch(job: Annotated[str, typer.Argument(help="Id of a job.")], as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended. Ctrl-C leaves the job alone."""
    with client() as api:
        ended = follow(api, job, err)
    if as_json:
        show(ended, True, lambda: None)
    _exit_by(ended)


def _exit_by(job: dict[str, Any]) -> None:
    if job["status"] in ENDED and (job["status"] != "completed" or job["counts"]["failed"]):
        raise typer.Exit(Exit.FAILED)


def wait(api: RetortClient, export: dict[str, Any]) -> dict[str, Any]:
    """An export, once it has ended."""
    with err.status("Exporting …"):
        while export["status"] in ("ready", "running"):
            time.sleep(0.2)
            export = api.export(export["id"])
    return export


commands = (submit, watch)
