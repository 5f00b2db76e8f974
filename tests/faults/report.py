"""What the fault runs found, as the table of docs/reliability.md: `python -m tests.faults.report RECORD PAGE`.

The record has one line of JSON for each run; the page's table is made from it and never by hand.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults.world import Found

_FILE = os.environ.get("RETORT_FAULTS_REPORT")
_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def note(database: str, broker: str, fault: str, found: Found, at_risk: int | None) -> None:
    """Remember one run, where a report was asked for."""
    if _FILE is None:
        return
    line = {"database": database, "broker": broker, "fault": fault, "at_risk": at_risk, **asdict(found)}
    with Path(_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(record: str) -> str:
    """Markdown of the noted runs: by fault, then by database and broker."""
    head = "| fault | database | broker | samples | completed | failed rows | lost | doubled | at risk | made again |\n"
    head += "|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    body = ""
    runs = [json.loads(line) for line in record.splitlines()]  # of tests in several processes
    runs.sort(key=lambda run: (run["database"] != "sqlite", run["broker"] != "valkey"))
    order = list(dict.fromkeys(run["fault"] for run in runs))
    for run in sorted(runs, key=lambda run: order.index(run["fault"])):
        risk = "–" if run["at_risk"] is None else f"{run['at_risk']:,}"
        numbers = (run[name] for name in ("prompts", "completed", "failed", "lost", "doubled"))
        cells = [run["fault"], run["database"], run["broker"], *(f"{number:,}" for number in numbers)]
        body += f"| {' | '.join(cells)} | {risk} | {run['again']:,} |\n"
    return head + body


def place(record: Path, page: Path) -> None:
    """Put the record's table between the page's two marks."""
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}{table(record.read_text())}{_END}{after}")


def placed(page: Path) -> str:
    """The table that the page shows."""
    return page.read_text().partition(_BEGIN)[2].partition(_END)[0]


if __name__ == "__main__":
    place(Path(sys.argv[1]), Path(sys.argv[2]))
