"""A run as tables: on a terminal, as Markdown; and as JSON, from which all of it can be made again."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from tests.bench.contenders import LIMITS, TITLES
from tests.bench.goals import GOALS
from tests.bench.measures import MEASURES
from tests.bench.readings import FIGURES, Reading, Readings, Spread

RATIOS = ("cpu_us_per_row", "rows_per_second", "cpu_us_per_token", "tokens_per_cpu_second")
"""Figures that are also told as a multiple of the bare client's."""

_LEGEND = (
    "medians of the repeats, in brackets the smallest and the largest; ×: by the bare client (or writer)"
)


@dataclass
class Run:
    """`told`: machine, versions, settings; plain values for a reader."""

    told: dict[str, Any]
    readings: Readings
    left_out: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        content = {
            "told": self.told,
            "left_out": self.left_out,
            "readings": [asdict(reading) for reading in self.readings.all],
        }
        path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")

    def beside(self, earlier: "Run") -> "Run":
        """This run, and of the earlier one the measures that this one lacks. Raises `ValueError` for unlike ones."""
        for what in ("commit", "machine", "sizes", "slowed on purpose"):
            one, other = earlier.told.get(what), self.told.get(what)
            if one != other:
                raise ValueError(f"they do not go together: {what} {one!r} and {other!r}")
        mine = set(self.readings.measures())
        kept = [reading for reading in earlier.readings.all if reading.measure not in mine]
        readings = Readings([*kept, *self.readings.all])
        told = {**self.told, "repeats": repeats_of(readings)}
        return Run(told, readings, {**earlier.left_out, **self.left_out})

    @classmethod
    def load(cls, path: Path) -> "Run":
        content = orjson.loads(path.read_bytes())
        readings = Readings(Reading(**reading) for reading in content["readings"])
        return cls(content["told"], readings, content["left_out"])


def repeats_of(readings: Readings) -> str:
    """How often each measure was made."""
    made = {
        name: max(r.repeat for r in readings.all if r.measure == name) + 1 for name in readings.measures()
    }
    return ", ".join(f"{name} {times}" for name, times in made.items())


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:,.{digits}f}"


def told(spread: Spread | None) -> str:
    if spread is None:
        return ""
    middle, low, high = map(number, (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"


def rows_of(readings: Readings, measure: str, case: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one case's table: a row for each contender."""
    figures = readings.figures(measure, case)
    contenders = readings.contenders(measure, case)
    headings = [""]
    columns = []
    for figure in figures:
        headings.append(FIGURES[figure][0])
        columns.append([told(readings.spread(measure, case, name, figure)) for name in contenders])
        limit = limit_of(contenders)
        if figure in RATIOS and limit is not None:
            headings.append("×")
            columns.append([told(readings.ratio(measure, case, name, figure, limit)) for name in contenders])
    titles = [title_of(name) for name in contenders]
    return headings, [list(row) for row in zip(titles, *columns, strict=True)]


def limit_of(contenders: list[str]) -> str | None:
    """Which of these contenders the others are measured against."""
    return next((name for name in LIMITS if name in contenders and len(contenders) > 1), None)


def title_of(contender: str) -> str:
    return TITLES.get(contender, contender)


def goals_of(run: Run) -> list[tuple[str, str, str, str]]:
    """(what, found, goal, verdict) of each goal that the run measured; none at sizes that measure constants."""
    if run.told.get("sizes") == "smoke":
        return []
    found = []
    for goal in GOALS:
        spread = goal.found(run.readings)
        if spread is not None:
            sign = "≤" if goal.at_most else "≥"
            verdict = "held" if goal.holds(spread) else "missed"
            found.append((goal.words, told(spread), f"{sign} {goal.bound:g}", verdict))
    return found


def print_run(run: Run, console: Console) -> None:
    for measure in run.readings.measures():
        for case in run.readings.cases(measure):
            headings, rows = rows_of(run.readings, measure, case)
            table = Table(title=f"{_title(measure)}: {case}", title_justify="left", title_style="bold")
            for place, heading in enumerate(headings):
                table.add_column(heading, justify="left" if place == 0 else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    if goals := goals_of(run):
        table = Table(title="Numbers to hold", title_justify="left", title_style="bold")
        for heading in ("", "found", "goal", ""):
            table.add_column(heading)
        for goal in goals:
            table.add_row(*goal)
        console.print(table)
    for name, why in run.left_out.items():
        console.print(f"Left out: {title_of(name)}. {why}", highlight=False, markup=False)
    console.print(f"{_LEGEND[0].upper()}{_LEGEND[1:]}.")


def markdown(run: Run) -> str:
    """The tables and what they were measured on."""
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`; how to read it: [benchmarks.md](../benchmarks.md).",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in run.told.items()]
    for name, why in run.left_out.items():
        lines.append(f"- left out: {title_of(name)}. {why}")
    lines.append(f"- {_LEGEND}")
    if goals := goals_of(run):
        lines += ["", "## Numbers to hold", "", *table(["", "found", "goal", ""], [list(g) for g in goals])]
    for measure in run.readings.measures():
        lines += ["", f"## {_title(measure)}"]
        for case in run.readings.cases(measure):
            lines += ["", f"### {case}", "", *table(*rows_of(run.readings, measure, case))]
    return "\n".join(lines) + "\n"


def _title(measure: str) -> str:
    return MEASURES[measure].title if measure in MEASURES else measure


def table(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "---|" + "---:|" * (len(headings) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
