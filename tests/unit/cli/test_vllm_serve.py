"""`retort vllm-serve`: the command it makes, for a shell, for a script, for itself."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

RETORT = Path(sys.executable).parent / "retort"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RETORT, "vllm-serve", *words],
        env={**os.environ, "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_printed_command_is_one_for_a_shell_and_shows_no_key() -> None:
    shown = run(
        "a model", "--print", "--secret", "env:MY_KEY", "--", "--dtype", "float32", MY_KEY="the key itself"
    )
    assert shown.returncode == 0, shown.stderr
    assert "the key itself" not in shown.stdout + shown.stderr
    words = shlex.split(shown.stdout.replace("\\\n", ""))
    folder = Path(words[0].partition("=")[2])
    assert [
        path.name for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ] != []
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"__init__.py", "retort_route"}
    assert words[1] == "VLLM_API_KEY=$MY_KEY"
    assert words[2:8] == [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "a model",
        "--host",
    ]
    assert words[words.index("--middleware") + 1] == "retort_route.CompactRoute"
    assert words[words.index("--max-logprobs") + 1] == "129"
    assert words[-2:] == ["--dtype", "float32"]


def test_as_json_it_names_the_environment_too() -> None:
    shown = run(
        "m", "--print", "--json", "--secret", "file:/a key", "--top-logprobs", "20", PYTHONPATH="/elsewhere"
    )
    told = json.loads(shown.stdout)
    assert told["environment"]["VLLM_API_KEY"] == "file:/a key"
    assert told["environment"]["PYTHONPATH"].endswith("inside_vllm:/elsewhere")
    assert told["command"][told["command"].index("--max-logprobs") + 1] == "21"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("m",), "has no vLLM"),
        (("m", "--python", "/nowhere/python"), "cannot be run"),
        (("m", "--secret", "the key itself"), "env:NAME or file:/path"),
        (("m", "--print", "--secret", 'env:A";rm'), "env:NAME or file:/path"),
    ],
)
def test_what_cannot_be_started_says_why(words: tuple[str, ...], why: str) -> None:
    shown = run(*words)
    assert shown.returncode == 2
    assert why in shown.stderr


def test_the_route_is_importable_from_its_folder_alone() -> None:
    """As vLLM does it: by PYTHONPATH, with nothing else of ours, and without loading vLLM."""
    shown = run("m", "--print", "--json")
    path = json.loads(shown.stdout)["environment"]["PYTHONPATH"]
    script = (
        "import sys, retort_route as r; print(r.CompactRoute.__module__, {'vllm', 'app'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd="/",
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["retort_route.middleware", "set()"]
