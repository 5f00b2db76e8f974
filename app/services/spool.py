"""`strict` appends: every row is judged before the first one goes in. The rows wait in a temporary file."""

import struct
import tempfile
from collections.abc import Iterable, Iterator

from app.db.prompt_sets import RowError
from app.errors import InvalidInput
from app.services.appends import CHUNK_BYTES, CHUNK_ROWS, RawRow, judge

_HEAD = struct.Struct("<QI")  # line, bytes
_IN_MEMORY = 1024 * 1024
_SHOWN_ERRORS = 100


class Spool:
    """Rows in, judged; the same rows out, if all are good. Close it."""

    def __init__(self, default_license: str | None) -> None:
        self._default_license = default_license
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._errors: list[RowError] = []
        self._n_rows = 0
        self._n_errors = 0

    def add(self, rows: Iterable[RawRow]) -> None:
        for row in rows:
            self._n_rows += 1
            verdict = judge(row, self._default_license)
            if isinstance(verdict, RowError):
                self._n_errors += 1
                if len(self._errors) < _SHOWN_ERRORS:
                    self._errors.append(verdict)
            elif not self._n_errors:
                self._file.write(_HEAD.pack(row.line, len(row.content)) + row.content)

    def check(self) -> None:
        """Raises `InvalidInput` with the rows at fault, where there are any."""
        if self._n_errors:
            raise InvalidInput(
                f"{self._n_errors:,} of {self._n_rows:,} rows do not parse, and `strict` was asked for: "
                "nothing was added",
                errors=[
                    {"line": error.line, "kind": error.kind, "detail": error.reason, "excerpt": error.excerpt}
                    for error in self._errors
                ],
                n_errors=self._n_errors,
            )

    def chunks(self) -> Iterator[list[RawRow]]:
        """The rows, in portions of one transaction each."""
        self._file.seek(0)
        portion: list[RawRow] = []
        size = 0
        while head := self._file.read(_HEAD.size):
            line, n_bytes = _HEAD.unpack(head)
            portion.append(RawRow(line, self._file.read(n_bytes)))
            size += n_bytes
            if len(portion) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield portion
                portion, size = [], 0
        if portion:
            yield portion

    def close(self) -> None:
        self._file.close()
