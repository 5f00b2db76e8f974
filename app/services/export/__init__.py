"""Exports: immutable snapshots of completions, made by a worker, whole or not at all.

spec.py      what is asked for
views.py     made, read, cancelled, deleted
facts.py     the jobs, teachers and bindings behind the rows
judging.py   what the policy says of it, and the rows that it leaves out
members.py   which completions are in which file
reading.py   the selected rows as batches of columns, with columns.py and tokens.py
grouping.py  rows in portions that do not depend on who reads
streaming.py the same rows as lines, without a file
running.py   the worker's side: files under a lease, kept one by one
beside.py    the manifest, and what else lies beside the data
"""

from app.services.export.running import folder_of, run_next
from app.services.export.spec import ExportSpec, FileSize, Layout, Selection
from app.services.export.streaming import LineStream, stream
from app.services.export.views import (
    ExportForecast,
    ExportView,
    FileView,
    FormatView,
    cancel,
    create,
    delete,
    file_of,
    forecast,
    formats,
    get,
    page,
)

__all__ = [
    "ExportForecast",
    "ExportSpec",
    "ExportView",
    "FileSize",
    "FileView",
    "FormatView",
    "Layout",
    "LineStream",
    "Selection",
    "cancel",
    "create",
    "delete",
    "file_of",
    "folder_of",
    "forecast",
    "formats",
    "get",
    "page",
    "run_next",
    "stream",
]
