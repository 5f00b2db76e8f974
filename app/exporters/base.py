"""What an exporter is: it turns rows into files of one format. The service gives it rows in a stable order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from pydantic import JsonValue

from app.domain.columns import TokenColumns


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One completion with all that it came from."""

    row_id: str  # job/stage/prompt number/teacher/sample index
    messages: list[dict[str, JsonValue]]  # as asked
    answer: str
    reasoning: str | None
    reasoning_source: str | None
    reasoning_truncated: bool
    tool_calls: JsonValue
    tools: JsonValue
    response_schema: JsonValue
    reference: JsonValue
    metadata: dict[str, JsonValue]
    finish_reason: str | None
    provenance: dict[str, JsonValue]  # flat: teacher, licences, hashes, parameters, usage …
    tokens: TokenColumns | None


class Exporter(Protocol):
    """A format. `suffix` ends the data files' names; `needs_tokens` says whether token columns are read for it."""

    suffix: str
    needs_tokens: bool

    def write(self, rows: Iterator[ExportRow], file: IO[bytes]) -> None:
        """All of `rows` as one file, in bounded memory, equal bytes for equal rows."""
        ...
