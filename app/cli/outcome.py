"""How a command ends: what it prints, and an exit code that means something.

0 fine · 1 rows, a job or a check failed, or a file or folder cannot be used · 2 wrong usage · 3 the service or its
database cannot be reached · 4 refused (key, role, policy, conflict, invalid input) · 5 no such thing · 130 interrupted
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from app.errors import RetortError

if TYPE_CHECKING:  # imported where they are used: `retort --help` has no time for them
    from pydantic_core import ErrorDetails

    from app.client import Fault, Problem, RetortClient
    from app.settings import Settings

T = TypeVar("T")

_JSON = "retort.json"


def _console(stderr: bool) -> Console:
    """Lines are broken for a terminal only: elsewhere a program may read them."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else 1000)


out, err = _console(stderr=False), _console(stderr=True)


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta[_JSON] = value
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.", callback=_remember)]


class Exit(IntEnum):
    FINE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NOT_FOUND = 5
    INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends a command with a sentence for a person and an exit code. `kind` is for programs."""

    def __init__(self, detail: str, code: Exit, kind: str = "command-failed") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.kind = kind


def settings() -> "Settings":
    """The settings. Raises `CommandFailed`, naming the wrong one."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(_wrong_setting(problem) for problem in error.errors(include_url=False))
    except (OSError, UnicodeDecodeError) as error:
        wrong = f".env cannot be read: {error}"
    raise CommandFailed(
        f"a setting (in the environment or in .env) is wrong: {wrong}", Exit.USAGE, "wrong-setting"
    )


def _wrong_setting(problem: "ErrorDetails") -> str:
    from app.settings import setting_names

    name = "__".join(["RETORT", *(step for step in problem["loc"] if isinstance(step, str))]).upper()
    name = name.replace("__", "_", 1)
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
    meant = difflib.get_close_matches(name, setting_names(), 1)
    return f"there is no {name}{f'; did you mean {meant[0]}?' if meant else ''}"


def service_url(given: "Settings") -> str:
    """Where the service is: as told, else where the supervisor of the data folder says, else the usual place."""
    from workers.running import read_state

    if given.url is not None:
        return given.url
    state = read_state(given.data_dir)
    return given.service_url if state is None else state.url


def key_of(given: "Settings") -> str | None:
    """The key of the environment, else the one that the data folder on this machine holds. Raises `CommandFailed`."""
    if given.api_key is not None:
        return given.api_key.get_secret_value()
    try:
        key = given.key_file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise CommandFailed(
            f"{given.key_file} is another user's: set RETORT_API_KEY to a key of your own",
            Exit.REFUSED,
            "no-key",
        ) from None
    except UnicodeDecodeError:
        key = ""
    if not key.isprintable() or " " in key or not key:
        raise CommandFailed(
            f"{given.key_file} holds no key: set RETORT_API_KEY to one, or restore the file",
            Exit.REFUSED,
            "no-key",
        )
    return key


@contextmanager
def client() -> "Iterator[RetortClient]":
    """A client of the service that the settings name."""
    from app.client import RetortClient

    given = settings()
    with RetortClient(service_url(given), key_of(given)) as made:
        yield made


def show(value: object, as_json: bool, told: Callable[[], None]) -> None:
    """JSON on standard output, or what a person reads."""
    if not as_json:
        told()
        return
    from pydantic_core import to_jsonable_python

    sys.stdout.write(json.dumps(to_jsonable_python(value), indent=2, ensure_ascii=False) + "\n")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(rows: Sequence[T], columns: Mapping[str, Callable[[T], object]], empty: str) -> None:
    if not rows:
        out.print(empty, markup=False)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        made.add_column(name, overflow="fold", no_wrap=number == 0)  # ids and names are copied whole
    for row in rows:
        made.add_row(*(_cell(column(row)) for column in columns.values()))
    out.print(made)


def _cell(value: object) -> str:
    return "–" if value is None else escape(str(value))


class Guarded(TyperGroup):
    """Runs a command; what a user can mend is told in a sentence, never as a traceback."""

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ending = ("stopped; what was stored stays", "interrupted", Exit.INTERRUPTED)
        except BrokenPipeError:  # `retort … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.FINE)
        except Exception as error:
            found = ending_of(error)
            if found is None:
                raise
            ending = found
        _tell(*ending, bool(ctx.meta.get(_JSON)))


def ending_of(error: Exception) -> tuple[str, str, Exit] | None:
    """(sentence, kind, exit code) of an error that is not a fault of this program; None for one that is."""
    from sqlalchemy.exc import DBAPIError

    from app.client import ServiceRefused, ServiceUnreachable

    match error:
        case CommandFailed():
            return error.detail, error.kind, error.code
        case RetortError():
            return error.detail, error.kind, Exit.FAILED
        case ServiceUnreachable():
            hint = "`retort up` starts one here, RETORT_URL (or --url) names another, `retort doctor` looks closer."
            return f"{error}\n{hint}", "unreachable", Exit.UNREACHABLE
        case ServiceRefused():
            kind = error.problem.kind or "refused"
            return _explained(error.problem), kind, _code_of(error.problem.status)
        case DBAPIError():
            reason = str(error.orig).strip().splitlines()[0]
            return f"the database does not answer: {reason}", "database", Exit.UNREACHABLE
        case OSError() if error.filename is not None:
            return f"{error.filename}: {error.strerror}", "file", Exit.FAILED
    return None


def _explained(problem: "Problem") -> str:
    lines = [problem.detail]
    if len(problem.errors) > 1 or any(fault.line is not None for fault in problem.errors):
        lines += [f"  {_place(fault)}{fault.detail}" for fault in problem.errors[:20]]
    if (more := len(problem.errors) - 20) > 0:
        lines.append(f"  … and {more} more")
    if problem.status == 401:
        lines.append(
            "Set RETORT_API_KEY, or RETORT_DATA_DIR to the folder whose admin.key that service made."
        )
    if problem.status >= 500 and problem.request_id:
        lines.append(f"The service's log tells more under request {problem.request_id}.")
    return "\n".join(lines)


def _place(fault: "Fault") -> str:
    if fault.line is not None:
        return f"line {fault.line}: "
    return f"{fault.pointer} " if fault.pointer else ""


def _code_of(status: int) -> Exit:
    if status == 404:
        return Exit.NOT_FOUND
    return Exit.REFUSED if status < 500 else Exit.UNREACHABLE


def _tell(message: str, kind: str, code: Exit, as_json: bool) -> NoReturn:
    if as_json:
        told = {"error": kind, "detail": message, "exit": int(code)}
        sys.stderr.write(json.dumps(told, ensure_ascii=False) + "\n")
    else:
        err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(code)
