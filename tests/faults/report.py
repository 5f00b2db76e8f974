"""What the fault runs found, as the table of docs/reliability.md: `python -m tests.faults.report FILE`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults.world import Found

_FILE = os.environ.get("RETORT_FAULTS_REPORT")


def note(database: str, broker: str, fault: str, found: Found, at_risk: int | None) -> None:
    """Remember one run, where a report was asked for. Lost and doubled rows are 0: the test has checked it."""
    if _FILE is None:
        return
    line = {"database": database, "broker": broker, "fault": fault, "at_risk": at_risk, **asdict(found)}
    with Path(_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(lines: list[str]) -> str:
    """Markdown of the noted runs."""
    head = "| database | broker | fault | samples | completed | failed rows | lost | doubled | at risk | made again |\n"
    head += "|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    body = ""
    for line in lines:
        run = json.loads(line)
        risk = "–" if run["at_risk"] is None else f"{run['at_risk']:,}"
        body += (
            f"| {run['database']} | {run['broker']} | {run['fault']} | {run['prompts']:,} | {run['completed']:,} "
            f"| {run['failed']:,} | 0 | 0 | {risk} | {run['again']:,} |\n"
        )
    return head + body


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1]).read_text().splitlines()))
