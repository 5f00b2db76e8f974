"""A run into the documentation: its files into docs/bench, its numbers to hold into docs/benchmarks.md."""

import re
from pathlib import Path

from tests.bench.agreement import compare
from tests.bench.plot import plot
from tests.bench.report import Run, goals_of, markdown, table

BEGIN, END = "<!-- found: written by `retort bench publish` -->", "<!-- end of what was found -->"


def save(run: Run, folder: Path, name: str) -> None:
    """NAME.json, NAME.md and NAME.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    run.save(folder / f"{name}.json")
    (folder / f"{name}.md").write_text(markdown(run))
    (folder / f"{name}.svg").write_text(plot(run))


def into_page(page: Path, run: Run, again: Run | None, slowed: Run | None) -> None:
    """Replace what stands between the marks. Raises `ValueError` where the page has none."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} lacks the line {BEGIN!r} or {END!r}")
    found = "\n".join(_found(run, again, slowed))
    marked = f"{BEGIN}\n\n{found}\n\n{END}"
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: marked, text, flags=re.DOTALL))


def _found(run: Run, again: Run | None, slowed: Run | None) -> list[str]:
    told = run.told
    lines = [f"{told['when']}, {told['commit']}, on {told['machine']}. Repeats: {told['repeats']}.", ""]
    lines += table(["", "found", "goal", ""], [list(goal) for goal in goals_of(run)])
    lines += ["", "![The plot of the run](bench/results.svg)"]
    if again is not None:
        rows, agree = compare(run, again)
        words = (
            "all ratios agree within their ranges" if agree else "not all ratios agree within their ranges"
        )
        lines += ["", f"**Run twice**, on the same commit: {words}.", ""]
        lines += table(["", "ratio of", "first", "second", ""], [list(row) for row in rows])
    if slowed is not None:
        rows, _ = compare(run, slowed)
        lines += [
            "",
            f"**Slowed on purpose**, {slowed.told['slowed on purpose']}: what the table then shows.",
            "",
        ]
        lines += table(["", "ratio of", "as it is", "slowed", ""], [list(row) for row in rows])
    return lines
