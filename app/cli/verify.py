"""`retort verify`: an export on this disk against its manifest and, with a key, its signature. No service is needed."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, out, show


def verify(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with manifest.json and its files.")
    ],
    public_key: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="PEM file: check the signature with it, offline."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of an export. Exit code 1 where one byte differs, or the signature is not by this key."""
    from app.exporters import signing

    manifest = _read(folder / signing.MANIFEST)
    try:
        files = {file["name"]: file["sha256"] for file in json.loads(manifest)["files"]}
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(f"{folder / signing.MANIFEST} is no manifest", Exit.FAILED, "damaged") from None
    if public_key is not None:
        signed = signing.verify(_read(folder / signing.SIGNATURE), manifest, public_key.read_bytes())
        files = {name: digest for name, digest in signed.items() if name != signing.MANIFEST}
    for name, digest in sorted(files.items()):
        if Path(name).name != name:
            raise CommandFailed(
                f"the manifest names {name!r}, which is no file of it", Exit.FAILED, "damaged"
            )
        with (folder / name).open("rb") if (folder / name).is_file() else _missing(folder / name) as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != digest:
                raise CommandFailed(
                    f"{folder / name} is not what the manifest says: its SHA-256 differs",
                    Exit.FAILED,
                    "damaged",
                )
    how = "signed by this key, and whole" if public_key is not None else "whole; no signature was checked"
    told = {"folder": str(folder), "files": len(files), "signature_checked": public_key is not None}
    show(told, as_json, lambda: out.print(f"{len(files)} files: {how}.", soft_wrap=True))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}", Exit.FAILED, "damaged") from None


def _missing(file: Path) -> "typer.FileBinaryRead":
    raise CommandFailed(f"{file} is missing", Exit.FAILED, "damaged")


commands = (verify,)
