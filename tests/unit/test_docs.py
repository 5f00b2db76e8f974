"""What the pages say: commands and options that exist, links that lead somewhere, every page in the list."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app.cli import app
from app.cli.outcome import Exit

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)
WRITTEN_BY_BENCH = "bench/results.md"  # by its full run, which takes an hour
PASSED_ON = {"bench"}  # takes the benchmark's own arguments


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `retort …`, in blocks of code and in sentences."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"[|;]|&&|\$\(|\)", line):
                if re.match(r"\s*(docker compose exec api )?retort ", part):
                    yield shlex.split(part.replace("…", "x").partition("retort ")[2], comments=True)
    for sentence in re.findall(r"`retort ([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        yield shlex.split(sentence.replace("…", ""))


def unknown(words: list[str]) -> str | None:
    """What no such command or option is; None where all are there."""
    command: Any = COMMAND
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        if words[0] not in command.commands:
            return words[0]
        command, words = command.commands[words[0]], words[1:]
        if command.name in PASSED_ON:
            return None
    if "--" in words:
        words = words[: words.index("--")]
    options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    return next(
        (word for word in words if word.startswith("--") and word.partition("=")[0] not in options), None
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    wrong = [(words, what) for words in commands(page.read_text()) if (what := unknown(words)) is not None]
    assert wrong == []


def test_the_check_finds_what_is_not_there() -> None:
    assert unknown(["submit", "x", "--teecher", "t"]) == "--teecher"
    assert unknown(["jobs", "lst"]) == "lst"
    assert list(
        commands("`retort jobs show x` and\n```sh\nJOB=$(retort submit a --n 2 | cat)  # retort no\n```")
    ) == [
        ["submit", "a", "--n", "2"],
        ["jobs", "show", "x"],
    ]


def test_every_command_is_told_of() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name, command in COMMAND.commands.items():  # type: ignore[attr-defined]
        assert re.search(rf"retort {name}\b", text) or name == "version", name
        for inner in getattr(command, "commands", {}):
            assert f"`{inner}`" in text or f"retort {name} {inner}" in text, f"{name} {inner}"


def test_the_list_of_groups_is_whole() -> None:
    """Each row of `docs/cli.md` that lists a group's commands lists all of them."""
    rows = re.findall(
        r"^\| `retort ([a-z-]+)` \| (`[^|]+) \|$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE
    )
    groups = {name: set(re.findall(r"`([a-z-]+)`", told.partition(":")[0])) for name, told in rows}
    assert len(groups) >= 6
    for name, told in groups.items():
        assert told == set(COMMAND.commands[name].commands), name  # type: ignore[attr-defined]


def test_every_exit_code_is_told_of() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [
        int(code) for code in Exit
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target and target != WRITTEN_BY_BENCH:
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_list_of_pages_is_whole() -> None:
    listed = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in PAGES if page.parent.name == "docs"} - listed == {"README.md"}
