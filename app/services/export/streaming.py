"""The selected rows as lines, straight from the database, for those who only want to pipe: no file, no worker."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db import export_rows
from app.errors import InvalidInput
from app.exporters import Exporter
from app.policy.rules import PolicyRules
from app.services import policy
from app.services.export.judging import Sieve, verdict
from app.services.export.reading import Source
from app.services.export.spec import ExportSpec, wanted
from app.services.export.views import checked
from app.storage.places import Storage

LINES = ".jsonl"
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class LineStream:
    """A stream that was judged and fixed. Each of `lines` may be iterated once."""

    source: Source
    exporter: Exporter
    sieve: Sieve

    def lines(self, stopped: Callable[[], bool]) -> Iterator[bytes]:
        """Some hundred lines at a time; a page of rows in memory, the next one read when it is asked for."""
        for page in self.source.pages({}):
            for start in range(0, page.table.num_rows, _AT_ONCE):
                if stopped():
                    raise ConnectionError("the service stops: ask again")
                for batch in page.table.slice(start, _AT_ONCE).combine_chunks().to_batches():
                    yield self._lines(batch)

    def _lines(self, batch: pa.RecordBatch) -> bytes:
        kept, _, _ = self.sieve.parts(batch)
        target = io.BytesIO()
        shard = self.exporter.open(target, "")
        shard.write(batch if kept is None else batch.filter(pa.array(kept)))
        shard.close()
        return target.getvalue()


def stream(
    session: Session,
    database: Engine,
    storage: Storage,
    project_id: str,
    key_id: str,
    spec: ExportSpec,
    rules: PolicyRules,
) -> LineStream:
    """Check, judge and fix what is streamed; the decision is kept. `database`: for reading, after the session's end.

    Raises what making an export raises, and `InvalidInput` for a format that is not lines.
    """
    made, jobs, _ = checked(session, project_id, spec)
    if made.suffix != LINES:
        raise InvalidInput(
            f"format {spec.format!r} is not lines of JSON: stream `jsonl`, or make an export of it",
            errors=[{"detail": "not lines of JSON", "pointer": "#/format"}],
        )
    selection, connection = wanted(spec.selection), session.connection()
    # First: what is recorded before it is then among what is judged.
    watermark = export_rows.watermark(connection, selection.jobs)
    kinds, judged = verdict(
        connection, project_id, jobs, selection, spec.intended_use, spec.on_refusal, rules
    )
    policy.keep(connection, project_id, key_id, judged.decision_id, judged.decision, None)
    source = Source(
        database,
        storage,
        jobs,
        selection,
        spec.split,
        watermark,
        made.needs_tokens,
    )
    return LineStream(source, made, Sieve(kinds, judged.left_out))
