"""Exports in this process: made by the service's own functions, read back from the storage."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.db.models import Project
from app.db.session import session
from app.policy.rules import PolicyRules
from app.services import export
from app.services.export import ExportSpec, ExportView
from app.storage.places import Storage


def project_of(work: Session) -> str:
    """The one there is."""
    return str(work.execute(select(Project.id)).scalar_one())


def ask(database: Engine, **spec: Any) -> ExportView:
    """An export that waits; of `job_1`, as Parquet, where nothing else is said."""
    given = {"format": "parquet", "selection": {"jobs": ["job_1"]}, **spec}
    with session(database, writes=True) as work:
        return export.create(work, project_of(work), "key_1", ExportSpec.model_validate(given), PolicyRules())


def run(
    database: Engine, storage: Storage, worker: str = "w1", stopped: Callable[[], bool] = lambda: False
) -> bool:
    return export.run_next(database, storage, worker, 60, stopped, park_seconds=0)


def look(database: Engine, export_id: str) -> ExportView:
    with session(database, writes=False) as work:
        return export.get(work, project_of(work), export_id)


def made(database: Engine, storage: Storage, **spec: Any) -> ExportView:
    """An export that is completed."""
    asked = ask(database, **spec)
    assert run(database, storage)
    found = look(database, asked.id)
    assert found.status == "completed", found.error
    return found


def content(database: Engine, storage: Storage, view: ExportView, name: str) -> bytes:
    with session(database, writes=False) as work:
        path, file = export.file_of(work, project_of(work), view.id, name)
    with storage.open(path) as opened:
        found = opened.read()
    assert (len(found), hashlib.sha256(found).hexdigest()) == (file.n_bytes, file.sha256)
    return found


def digests(view: ExportView) -> dict[str, str]:
    """Name → SHA-256 of the files that must not vary."""
    return {file.name: file.sha256 for file in view.files if file.name != "manifest.json"}


def table(database: Engine, storage: Storage, view: ExportView) -> pa.Table:
    names = [file.name for file in view.files if file.name.endswith(".parquet")]
    return pa.concat_tables(
        [pq.read_table(pa.BufferReader(content(database, storage, view, name))) for name in names]
    )


def lines(database: Engine, storage: Storage, view: ExportView) -> list[dict[str, Any]]:
    names = [file.name for file in view.files if file.name.endswith(".jsonl")]
    text = b"".join(content(database, storage, view, name) for name in names)
    return [orjson.loads(line) for line in text.splitlines()]


def folder(database: Engine, storage: Storage, view: ExportView, target: Path) -> Path:
    """The export's files as somebody fetched them."""
    target.mkdir()
    for file in view.files:
        (target / file.name).write_bytes(content(database, storage, view, file.name))
    return target
