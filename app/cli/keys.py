"""`retort keys …`."""

from typing import Annotated

import typer

from app.cli.outcome import AsJson, client, out, show, table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the project's keys, without their secrets."""
    with client() as api:
        found = list(api.pages("/v1/keys"))
    columns = {
        "id": lambda key: key["id"],
        "name": lambda key: key["name"],
        "role": lambda key: key["role"],
        "from": lambda key: "this machine" if key["loopback_only"] else "anywhere",
        "revoked": lambda key: (key["revoked_at"] or "no")[:19],
    }
    show(found, as_json, lambda: table(found, columns, "No keys."))


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[str, typer.Option(help="reader, writer or admin.")] = "writer",
    loopback_only: Annotated[
        bool, typer.Option("--loopback-only", help="Valid on the service's machine only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a key. Its secret is shown this once."""
    with client() as api:
        made = api.call("POST", "/v1/keys", json={"name": name, "role": role, "loopback_only": loopback_only})
    show(made, as_json, lambda: out.print(f"{made['id']} ({made['role']}): {made['secret']}"))


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Id of a key.")], as_json: AsJson = False) -> None:
    """Make a key invalid from now on."""
    with client() as api:
        gone = api.call("DELETE", f"/v1/keys/{key}")
    show(gone, as_json, lambda: out.print(f"{gone['id']} is revoked."))
