"""`retort keys …`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, client, out, settings, show, table

if TYPE_CHECKING:
    from app.services.projects import NewKeyView

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the project's keys, without their secrets."""
    with client() as api:
        found = list(api.keys())
    columns = {
        "id": lambda key: key.id,
        "name": lambda key: key.name,
        "role": lambda key: key.role,
        "from": lambda key: "this machine" if key.loopback_only else "anywhere",
        "created": lambda key: f"{key.created_at:%Y-%m-%d %H:%M:%S}",
        "revoked": lambda key: "no" if key.revoked_at is None else f"{key.revoked_at:%Y-%m-%d %H:%M:%S}",
    }
    show(found, as_json, lambda: table(found, columns, "No keys."))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[
        Literal["reader", "writer", "admin"], typer.Option(help="Each may do what the ones before it may.")
    ] = "writer",
    loopback_only: Annotated[
        bool, typer.Option("--loopback-only", help="Works on the service's own machine only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its secret is shown this once."""
    from app.services.projects import Role

    with client() as api:
        made = api.create_key(name, Role(role), loopback_only)
    show(made, as_json, lambda: _told(made))


def _told(made: "NewKeyView") -> None:
    out.print(f"{made.id} ({made.role}). Its secret, shown this once:")
    out.print(made.secret, markup=False, soft_wrap=True)


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Id of a key.")], as_json: AsJson = False) -> None:
    """Make a key invalid from now on."""
    with client() as api:
        gone = api.revoke_key(key)
    show(gone, as_json, lambda: out.print(f"{gone.id} is revoked."))


@app.command("sign-init")
def sign_init(
    to: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="File for the private key. Default: signing.key in the data folder."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the key that signs exports' manifests, on this machine; whoever verifies needs the .pub file only.

    Workers of this data folder take it when they start; elsewhere RETORT_SIGNING_KEY_FILE names it.
    """
    import os

    from app.exporters import signing

    private = to or settings().signing_key_path
    public = private.with_suffix(".pub")
    private.parent.mkdir(parents=True, exist_ok=True)
    made = signing.new_private_key()
    try:
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CommandFailed(
            f"{private} is there already: what it signed could be verified no more; move it away first",
            Exit.REFUSED,
            "conflict",
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
        os.fsync(file.fileno())
    public.write_bytes(signing.public_key_of(made))
    told = {
        "private_key": str(private),
        "public_key": str(public),
        "key_id": signing.key_id(public.read_bytes()),
    }
    show(
        told, as_json, lambda: out.print(f"{private} signs, {public} verifies.", markup=False, soft_wrap=True)
    )
