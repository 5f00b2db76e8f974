"""The `retort` command. `--help` tells the rest; exit codes are at `app.cli.outcome`."""

import typer

from app.cli import database, doctor, exports, jobs, keys, prompt_sets, service, submit, teachers
from app.cli.outcome import guarded

app = typer.Typer(
    name="retort",
    help="Distillation data: prompts in, a teacher's answers out, with reasoning, logprobs and provenance.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 fine, 1 something failed, 2 wrong usage, 3 service unreachable, 4 refused, 5 not found.",
)
for group, panel in (
    (service.commands, "The service"),
    (submit.commands, "The main job"),
    (exports.commands, "The main job"),
    (doctor.commands, "The service"),
):
    for command in group:
        app.command(rich_help_panel=panel)(command)
app.add_typer(jobs.app, name="jobs", help="List, read and steer jobs.", rich_help_panel="Things")
app.add_typer(
    prompt_sets.app, name="prompt-sets", help="List and read prompt sets.", rich_help_panel="Things"
)
app.add_typer(
    teachers.app, name="teachers", help="List, register and probe teachers.", rich_help_panel="Things"
)
app.add_typer(keys.app, name="keys", help="List, create and revoke API keys.", rich_help_panel="Things")
app.add_typer(database.app, name="db", help="The database of this machine.", rich_help_panel="The service")


def main() -> None:
    """The console script."""
    guarded(app)
