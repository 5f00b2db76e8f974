"""`retort verify` and `retort push`: an export in a folder, whoever made it. No service is asked."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, counted, err, out, show

if TYPE_CHECKING:
    from app.exporters.verify import Report

Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of an export.")]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Public key, PEM: the export must be signed by it, whole and unchanged.",
    ),
]


def verify(folder: Folder, public_key: PublicKey = None, as_json: AsJson = False) -> None:
    """Check a folder against its manifest: every file, card, Croissant file, origin, signature. Offline.

    Exit code 1 where anything differs, down to one byte.
    """
    report = _checked(folder, public_key)

    def told() -> None:
        for warning in report.warnings:
            err.print(f"note: {warning}", markup=False, soft_wrap=True)
        for fault in report.faults:
            err.print(f"fault: {fault}", markup=False, soft_wrap=True)
        if not report.faults:
            by = (
                f"signed by this key ({report.signed_by[:16]}…)"
                if report.signed_by
                else "no signature was checked"
            )
            out.print(
                f"whole: {counted(report.n_rows, 'row')} in {counted(report.n_files, 'file')}; {by}",
                markup=False,
            )

    show({**asdict(report), "folder": str(folder), "whole": not report.faults}, as_json, told)
    if report.faults:
        raise typer.Exit(Exit.FAILED)


def push(
    folder: Folder,
    repository: Annotated[
        str, typer.Argument(help="Dataset on the Hub: user/name. Made where it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Nobody else may see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch. Default: main.")] = None,
    token: Annotated[str, typer.Option(help="Where the token is: env:NAME or file:/path.")] = "env:HF_TOKEN",
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Check an export, then put it on the Hugging Face Hub with its card.

    A public one must have been exported with --redistribution: that is what it is. Needs the extra `hub`.
    """
    from app.errors import Forbidden
    from app.exporters.hub import HubUnreachable, push_export
    from app.teachers.secrets import resolve

    report = _checked(folder, public_key)
    if report.faults:
        raise CommandFailed(f"{folder} is not whole: {report.faults[0]}", Exit.FAILED, "export-damaged")
    secret = resolve(token)
    assert secret is not None
    try:
        url = push_export(folder, repository, secret.get_secret_value(), private, revision)
    except Forbidden as error:
        raise CommandFailed(error.detail, Exit.REFUSED, error.kind) from error
    except HubUnreachable as error:
        raise CommandFailed(error.detail, Exit.UNREACHABLE, error.kind) from error
    show(
        {"url": url, "rows": report.n_rows, "files": report.n_files},
        as_json,
        lambda: out.print(f"{counted(report.n_rows, 'row')} at {url}", markup=False, soft_wrap=True),
    )


def _checked(folder: Path, public_key: Path | None) -> "Report":
    from app.exporters.verify import verify_export

    return verify_export(folder, None if public_key is None else public_key.read_bytes())


commands = (verify, push)
