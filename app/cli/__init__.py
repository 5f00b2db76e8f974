"""The `retort` command. `retort --help` tells the rest; what exit codes mean is in `app.cli.outcome`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.cli import (
    audit,
    bench,
    database,
    datasets,
    doctor,
    export_list,
    exports,
    jobs,
    keys,
    lineage,
    policy,
    project,
    prompt_sets,
    service,
    submit,
    takedowns,
    teachers,
    vllm_serve,
    worker,
)
from app.cli.outcome import Guarded

app = typer.Typer(
    name="retort",
    cls=Guarded,
    help="Prompts in, a teacher's answers out, with reasoning, logprobs and provenance: datasets that trainers take.",
    epilog="Exit codes: 0 fine · 1 rows, a job or a check failed · 2 wrong usage · 3 the service cannot be reached · "
    "4 refused · 5 no such thing · 130 interrupted. Settings come from RETORT_… variables or .env: docs/settings.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _common(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of database, keys and files of a service on this machine. [RETORT_DATA_DIR]"
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where the service answers. [RETORT_URL]")] = None,
) -> None:
    if data_dir is not None:
        os.environ["RETORT_DATA_DIR"] = str(data_dir)
    if url is not None:
        os.environ["RETORT_URL"] = url


for panel, commands in (
    ("The service", (*service.commands, *worker.commands, *vllm_serve.commands, *doctor.commands)),
    ("The main job", (*submit.commands, *exports.commands)),
    ("Datasets", datasets.commands),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command(  # its arguments are the benchmark's own, --help included
    "bench",
    rich_help_panel="The service",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(bench.bench)
for name, group, about in (
    ("jobs", jobs.app, "List, read and steer jobs."),
    ("exports", export_list.app, "List, read, cancel and delete exports; list their formats."),
    ("prompt-sets", prompt_sets.app, "List and read prompt sets."),
    ("teachers", teachers.app, "List, register and probe teachers."),
    ("keys", keys.app, "List, create and revoke API keys."),
    ("project", project.app, "Read your project and set its default licence."),
    ("policy", policy.app, "What terms and licences permit, decisions, overrides."),
    ("audit", audit.app, "Who did what, and the proof that nothing of it was changed."),
    ("lineage", lineage.app, "From a row back to its origin, and forward to exports."),
    ("takedown", takedowns.app, "Remove what was made from a source, of prompts, or by a teacher."),
    ("db", database.app, "The database that this machine's settings name."),
):
    app.add_typer(group, name=name, help=about, rich_help_panel="Groups of commands")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Ends the process with one of the exit codes of `app.cli.outcome`."""
    app(args=arguments)
