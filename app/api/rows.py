"""A request's body as rows, in bounded memory: lines of NDJSON, plain or gzip."""

import zlib
from collections.abc import AsyncGenerator, AsyncIterator

from app.domain.prompts import MAX_ROW_BYTES
from app.errors import InvalidInput
from app.services.appends import CHUNK_BYTES, CHUNK_ROWS, RawRow

_KEPT_OF_TOO_LONG = 1024
_INFLATE_STEP = 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class Lines:
    """Cuts a byte stream into numbered rows. Holds one unfinished line, of at most `MAX_ROW_BYTES`."""

    def __init__(self) -> None:
        self._line = 0
        self._rest = bytearray()
        self._skipping = False  # inside a line that is too long

    def feed(self, data: bytes) -> list[RawRow]:
        """Rows that end in `data`. Blank lines are counted, and are no rows."""
        *whole, rest = data.split(b"\n")
        rows = []
        for end in whole:
            self._take(end)
            rows += self._end()
        self._take(rest)
        return rows

    def finish(self) -> list[RawRow]:
        """The last row, where no line feed ends it."""
        return self._end() if self._rest else []

    def _take(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._rest += piece
        if len(self._rest) > MAX_ROW_BYTES:
            self._skipping = True
            del self._rest[_KEPT_OF_TOO_LONG:]

    def _end(self) -> list[RawRow]:
        self._line += 1
        content, too_long = bytes(self._rest), self._skipping
        self._rest.clear()
        self._skipping = False
        if self._line == 1:
            content = content.removeprefix(_BOM)
        return [RawRow(self._line, content, too_long)] if too_long or content.strip() else []


class Gunzip:
    """Inflates a stream in steps of bounded size, so that a small bomb stays small."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> AsyncIterator[bytes]:
        return self._steps(data)

    async def _steps(self, data: bytes) -> AsyncIterator[bytes]:
        while data:
            try:
                step = self._inflate.decompress(data, _INFLATE_STEP)
            except zlib.error as error:
                raise InvalidInput(
                    f"the body is not gzip, though Content-Encoding says so: {error}"
                ) from error
            if step:
                yield step
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                data = self._inflate.unused_data
                if data:  # files that were compressed in pieces and put together
                    self._inflate = zlib.decompressobj(wbits=31)

    def check_whole(self) -> None:
        """Raises `InvalidInput` where the stream ended in the middle."""
        if not self._inflate.eof:
            raise InvalidInput("the gzip stream is cut off: rows up to the cut are in the set")


async def inflated(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body as it was before `Content-Encoding`. Raises `InvalidInput`."""
    if encoding in ("", "identity"):
        async for data in body:
            if data:
                yield data
        return
    gunzip = Gunzip()
    some = False
    async for data in body:
        some = some or bool(data)
        async for step in gunzip.feed(data):
            yield step
    if some:
        gunzip.check_whole()


async def row_chunks(body: AsyncIterator[bytes]) -> AsyncGenerator[list[RawRow], None]:
    """Rows in portions of one transaction each."""
    lines = Lines()
    portion: list[RawRow] = []
    size = 0
    async for data in body:
        for row in lines.feed(data):
            portion.append(row)
            size += len(row.content)
            if len(portion) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield portion
                portion, size = [], 0
    portion += lines.finish()
    if portion:
        yield portion
