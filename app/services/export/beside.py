"""The files beside the data: what the format brings, and the manifest. All but the manifest follow from the summary.

A file that every format gets (a card, a notice) is a function of the summary in `_EVERY`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from pydantic import JsonValue
from sqlalchemy import Row

from app.domain.version import code_version
from app.exporters import Exporter, Summary, card, croissant, format_of
from app.exporters.manifest import as_json, with_own_hash
from app.exporters.signing import MANIFEST, SIGNATURE, key_id
from app.policy.notice import StudentNotice, notice_text

NOTICE_TEXT: Final = "STUDENT_NOTICE.md"
NOTICE_DATA: Final = "student_notice.json"


def _notice_text(summary: Summary) -> bytes:
    return notice_text(_notice(summary)).encode()


def _notice_data(summary: Summary) -> bytes:
    return as_json(_notice(summary).model_dump(mode="json"))


def _notice(summary: Summary) -> StudentNotice:
    if summary.notice is None:
        raise ValueError("an export is not written without what its student must carry")
    return summary.notice


def _card(summary: Summary) -> bytes:
    return card.card(summary, format_of(summary.format))


_EVERY: Final[Mapping[str, Callable[[Summary], bytes]]] = {
    card.NAME: _card,
    croissant.NAME: croissant.croissant,
    NOTICE_TEXT: _notice_text,
    NOTICE_DATA: _notice_data,
}


def beside(exporter: Exporter, summary: Summary) -> dict[str, bytes]:
    """Name → content, the manifest apart. Raises `ValueError` where a format takes a name that is taken."""
    made = dict(exporter.companions(summary))
    taken = {MANIFEST, SIGNATURE, *_EVERY, *(file.name for file in summary.files)}
    if double := sorted(taken & set(made)):
        raise ValueError(f"format {summary.format!r} brings files whose names are taken: {', '.join(double)}")
    return made | {name: write(summary) for name, write in _EVERY.items()}


def manifest(
    export: Row[Any],
    summary: Summary,
    files: Sequence[dict[str, JsonValue]],
    policy: dict[str, JsonValue],
    audit: dict[str, JsonValue],
    public_key: bytes | None,
) -> dict[str, Any]:
    """What the export is, file by file. The one file that holds what varies: the id, times, versions of libraries.

    `audit`: the head of the project's audit log, so that whoever has the manifest has an anchor of it. `public_key`
    (PEM): of the key that signs it; it shows a damaged signature, and says nothing of whose it is.
    """
    told = {
        "format_version": 2,
        "export": export.id,
        "name": export.name,
        "format": export.format,
        "options": export.options,
        "n_rows": summary.n_rows,
        "splits": summary.splits,
        "selection": export.selection,
        "layout": export.layout,
        "intended_use": export.intended_use,
        "counts": summary.counts,
        "policy": policy,
        "student_notice": _notice(summary).model_dump(mode="json"),
        "audit": audit,
        "signed_by": None if public_key is None else key_id(public_key),
        "public_key": None if public_key is None else public_key.decode(),
        "code_version": code_version(),
        "pyarrow_version": pa.__version__,
        "watermark": _moment(snapshot_at(export)),
        "created_at": _moment(export.created_at),
        "files": list(files),
        "jobs": list(summary.jobs),
    }
    return with_own_hash(told)


def snapshot_at(export: Row[Any]) -> float:
    """Rows recorded before it are in. An export that an earlier version was asked for has no watermark of its own."""
    return float(export.created_at if export.watermark is None else export.watermark)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
