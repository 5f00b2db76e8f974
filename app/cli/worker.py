"""`retort worker`: one more process that generates and exports."""

import json
import os
import sys
from typing import Annotated

import typer

from app.cli.outcome import settings


def worker(
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Serve this teacher only; may be given several times. Default: every teacher."),
    ] = None,
) -> None:
    """Run one worker.

    Start as many as you like, on as many machines as you like: they share the database. SIGTERM (or Ctrl-C) drains
    it: calls in flight are finished and recorded. A second one leaves at once and still loses nothing of that.
    """
    from workers.embedded import WORKER_COMMAND

    given = settings()
    if teacher:
        os.environ["RETORT_WORKER_TEACHERS"] = json.dumps(teacher)
    os.execv(sys.executable, [*WORKER_COMMAND, "--loglevel", given.log_level])


commands = (worker,)
