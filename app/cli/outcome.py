"""How a command ends: what it prints, and an exit code that means something.

0 fine · 1 something failed (rows, a job, a check) · 2 wrong usage · 3 the service is unreachable · 4 refused
(key, role, policy, conflict, invalid input) · 5 not found · 130 interrupted
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.client import ClientError, RetortClient, ServiceUnreachable
from app.errors import InvalidInput, RetortError
from app.settings import Settings

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


class Exit(IntEnum):
    FINE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    INTERRUPTED = 130


def settings() -> Settings:
    """The settings, or a usage error that names the wrong one."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"RETORT_{'__'.join(str(step) for step in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        fail(f"a setting is wrong: {wrong}", Exit.USAGE)


@contextmanager
def client() -> Iterator[RetortClient]:
    """A client with the key of the environment, or of the data folder on this machine."""
    given = settings()
    key = None if given.api_key is None else given.api_key.get_secret_value()
    if key is None:
        try:
            key = given.key_file.read_text().strip()
        except FileNotFoundError:
            err.print(
                f"[yellow]No key: RETORT_API_KEY is not set and {given.key_file} is not there. "
                "`retort up` makes one.[/]"
            )
        except PermissionError:
            fail(
                f"{given.key_file} belongs to another user: set RETORT_API_KEY to a key of your own",
                Exit.REFUSED,
            )
    with RetortClient(given.service_url, key) as made:
        yield made


def fail(message: str, code: Exit) -> NoReturn:
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def show(value: Any, as_json: bool, otherwise: Callable[[], None]) -> None:
    """JSON on standard output, or what a person reads."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - this is the output
    else:
        otherwise()


def table(
    rows: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], object]], empty: str
) -> None:
    if not rows:
        out.print(empty)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell(row) if cell(row) is not None else "–")) for cell in columns.values()))
    out.print(made)


def guarded(app: typer.Typer) -> None:
    """Run the command; what the user can mend is told in a sentence, never as a traceback."""
    try:
        app()
    except ServiceUnreachable as error:
        _tell(
            f"{error}\nIs it running? `retort up` starts it here; RETORT_URL names another one.",
            Exit.UNREACHABLE,
        )
    except ClientError as error:
        _tell(_explained(error), _code_of(error.status))
    except InvalidInput as error:
        _tell(error.detail, Exit.REFUSED)
    except RetortError as error:
        _tell(error.detail, Exit.FAILED)
    except KeyboardInterrupt:
        _tell("stopped; what was stored stays", Exit.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FINE)


def _explained(error: ClientError) -> str:
    lines = [str(error)]
    for problem in error.problem.get("errors") or []:
        where = problem.get("pointer") or problem.get("parameter") or ""
        lines.append(f"  {where}: {problem.get('detail')}" if where else f"  {problem.get('detail')}")
    if error.status == 401:
        lines.append("Set RETORT_API_KEY, or RETORT_DATA_DIR to the folder whose admin.key the service made.")
    return "\n".join(lines)


def _code_of(status: int) -> Exit:
    if status == 404:
        return Exit.NOT_FOUND
    return Exit.REFUSED if status < 500 else Exit.FAILED


def _tell(message: str, code: Exit) -> NoReturn:
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)
