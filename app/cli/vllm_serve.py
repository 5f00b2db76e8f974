"""`retort vllm-serve`: a vLLM server that is a good teacher."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.outcome import AsJson, CommandFailed, Exit, err, out, show
from app.teachers import inside_vllm

ROUTE_FOLDER = Path(inside_vllm.__file__).parent
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOOK = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


def command(python: str, model: str, host: str, port: int, top_logprobs: int, extra: list[str]) -> list[str]:
    """What starts the server. Arguments in `extra` come last and win."""
    made = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        model,
        "--host",
        host,
        "--port",
        str(port),
    ]
    made += ["--middleware", "retort_route.CompactRoute"]
    # The chat route returns the first k of {sampled, top 1 … top k}: one more, so that it never lacks a candidate.
    made += ["--max-logprobs", str(top_logprobs + 1), "--logprobs-mode", "raw_logprobs"]
    made += ["--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    return [*made, *extra]


def python_path(before: str | None) -> str:
    """The folder of the compact route first; nothing else of ours is in it."""
    return str(ROUTE_FOLDER) if not before else f"{ROUTE_FOLDER}{os.pathsep}{before}"


def vllm_serve(
    model: Annotated[str, typer.Argument(help="A folder with a checkpoint, or a name on a hub.")],
    extra: Annotated[
        list[str] | None, typer.Argument(help="Arguments of vLLM's own, after `--`. They win over ours.")
    ] = None,
    python: Annotated[
        str, typer.Option(help="The Python that vLLM is installed for; usually of another environment.")
    ] = sys.executable,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    top_logprobs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Candidates a token that jobs may ask for, by any route.")
    ] = 128,
    secret: Annotated[
        str | None,
        typer.Option(
            help="A reference to the key that callers need, env:NAME or file:/path; never the key itself."
        ),
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command, start nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a vLLM server that gives logprobs fast: with the compact route, enough logprobs, raw ones, priorities.

    vLLM is not a part of this installation: --python names the environment that has it. Any other vLLM server works as
    a teacher, too, by its own routes.

    Example: retort vllm-serve Qwen/Qwen3-8B --python /opt/vllm/bin/python --secret env:KEY -- --dtype bfloat16
    """
    if secret is not None and not re.fullmatch(r"env:[A-Za-z_]\w*|file:/.+", secret):
        raise CommandFailed("--secret is a reference: env:NAME or file:/path", Exit.USAGE, "usage")
    words = command(python, model, host, port, top_logprobs, extra or [])
    path = python_path(os.environ.get("PYTHONPATH"))
    if print_only:
        environment = {"PYTHONPATH": path} | ({} if secret is None else {"VLLM_API_KEY": secret})
        show({"command": words, "environment": environment}, as_json, lambda: _print(words, path, secret))
        return
    environment = {**os.environ, "PYTHONPATH": path}
    if secret is not None:
        from app.teachers.secrets import resolve

        key = resolve(secret)
        assert key is not None
        environment["VLLM_API_KEY"] = key.get_secret_value()
    elif host not in _LOOPBACK and not {"--api-key", "VLLM_API_KEY"} & {*words, *os.environ}:
        err.print(
            f"No --secret: whoever reaches {host}:{port} may use the server.", style="yellow", markup=False
        )
    _check(python)
    reached = "127.0.0.1" if host == "0.0.0.0" else host
    err.print(
        f"Once it is up: retort teachers add NAME --driver vllm --model {model} --base-url http://{reached}:{port}/v1"
        + ("" if secret is None else f" --secret {secret}"),
        markup=False,
        soft_wrap=True,
    )
    os.execve(python, words, environment)


def _check(python: str) -> None:
    """Raises `CommandFailed` where this Python is none, or has no vLLM."""
    try:
        looked = subprocess.run(
            [python, "-c", _LOOK], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError as error:
        raise CommandFailed(f"{python} cannot be run: {error.strerror}", Exit.USAGE, "no-python") from None
    if looked.returncode != 0:
        raise CommandFailed(
            f"{python} has no vLLM: name the Python of the environment that has it with --python",
            Exit.USAGE,
            "no-vllm",
        )


def _print(words: list[str], path: str, secret: str | None) -> None:
    """A command for a shell; the key is named, not shown."""
    lines = [f"PYTHONPATH={shlex.quote(path)} \\"]
    if secret is not None:
        kind, _, place = secret.partition(":")
        value = f'"${place}"' if kind == "env" else f'"$(cat {shlex.quote(place)})"'
        lines.append(f"VLLM_API_KEY={value} \\")
    lines.append(shlex.join(words))
    out.print("\n".join(lines), markup=False, soft_wrap=True)


commands = (vllm_serve,)
