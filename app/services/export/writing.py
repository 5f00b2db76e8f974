"""A data file that is being written, by a thread of its own: meanwhile the next rows are read.

Laying columns together, encoding and compressing happen outside the interpreter's lock; reading is the interpreter's.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pyarrow as pa

from app.exporters import Shard
from app.exporters.counts import Counts, add, counts_of
from app.services.export.judging import Sieve
from app.services.export.members import Members
from app.services.export.reading import START, Place
from app.storage.places import NewFile, Written

_PLACE = ("job", "stage", "prompt_number", "lane", "sample_index")


@contextmanager
def pages_kept() -> Iterator[None]:
    """Arrow takes its memory from the C library from now on, which gives it back to the system at the end.

    Arrow's own choice gives freed pages back at once: with logprobs a quarter of an export was the system clearing
    fresh ones. `ARROW_DEFAULT_MEMORY_POOL` has the last word.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.default_memory_pool().release_unused()


class OpenFile:
    """One portion is written at a time, each whole before the next.

    `n_taken`, `place`: rows of the selection that were given, those that are dropped included, and the last of them.
    `n_bytes`: the file's, when it was settled last. `counts` and `members` are whole when the file is closed.
    """

    def __init__(self, name: str, new: NewFile, shard: Shard, sieve: Sieve) -> None:
        self.name = name
        self.shard = shard
        self.n_taken = 0
        self.n_bytes = 0
        self.place: Place = START
        self.counts: Counts = {"part": {}, "left_out": {}}
        self.members = Members()
        self._new = new
        self._sieve = sieve
        self._thread = ThreadPoolExecutor(1, "export-file")
        self._under_way: Future[None] | None = None
        self._closing: Future[Written] | None = None

    def write(self, portion: pa.Table) -> None:
        """Begin to write these rows. Raises what writing the ones before raised."""
        self.settle()
        self.n_taken += portion.num_rows
        last = [portion.column(name)[-1].as_py() for name in _PLACE]
        self.place = (str(last[0]), int(last[1]), int(last[2]), int(last[3]), int(last[4]))
        self._under_way = self._thread.submit(self._write, portion)

    def _write(self, portion: pa.Table) -> None:
        (batch,) = portion.combine_chunks().to_batches()
        kept, counts, left_out = self._sieve.parts(batch)
        add(self.counts, {"part": counts, "left_out": left_out})
        written = batch if kept is None else batch.filter(pa.array(kept))
        if written.num_rows:
            self.shard.write(written)
            add(self.counts, counts_of(written))
            self.members.add(written)

    def settle(self) -> None:
        """All that was given is in the file. Raises what writing it raised."""
        if (under_way := self._under_way) is not None:
            self._under_way = None
            under_way.result()
        self.n_bytes = self._new.file.tell()

    def close(self) -> None:
        """Begin to make the file whole and durable, behind what is being written."""
        before, self._under_way = self._under_way, None
        self._closing = self._thread.submit(self._close, before)
        self._thread.shutdown(wait=False)

    def _close(self, before: Future[None] | None) -> Written:
        if before is not None:
            before.result()  # the same thread has done it
        self.shard.close()
        written = self._new.finish()
        self.n_bytes = written.n_bytes
        return written

    @property
    def closed(self) -> bool:
        """Whether `written` would not wait."""
        return self._closing is not None and self._closing.done()

    def written(self) -> Written:
        """What the closed file is. Raises what writing it raised."""
        assert self._closing is not None
        return self._closing.result()

    def abandon(self) -> None:
        with suppress(Exception):  # what is told is why the file is given up
            self.settle() if self._closing is None else self.written()
        self._thread.shutdown()
        self._new.abandon()
