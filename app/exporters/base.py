"""What a format is: options, a check whether the rows fit, and a writer of batches. Writing one: docs/exports.md."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue

from app.errors import Unfit as Unfit
from app.policy.notice import StudentNotice


class FormatOptions(BaseModel):
    """Base of every format's options: typed, documented, and nothing that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Binding:
    """What the token ids and logprobs of one teacher in one job are bound to. None: the teacher does not tell.

    `token_ids`: the teacher gives ids at all. `top_logprobs`: candidates kept per position, 0 for none.
    """

    job: str
    teacher: str
    model: str
    revision: str | None
    engine: str | None
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    vocab_size: int | None
    token_ids: bool
    top_logprobs: int
    logprobs_mode: str = "raw_logprobs"
    logprobs_temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class DataFile:
    """A finished file of rows. `n_bytes` and `sha256` (hex) are those of the file."""

    name: str
    split: str
    n_rows: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a finished export holds: all that the files beside the data may tell.

    The same selection gives the same summary: no time, no id of the export, nothing of the worker. What varies is the
    manifest's. `notice`: what the student must carry; `counts`: column → value → rows, of the columns in
    `app.exporters.counts.COUNTED`, and `dropped` by reason; `jobs`: the facts of each job as in the manifest.
    """

    name: str
    format: str
    options: dict[str, JsonValue]
    selection: dict[str, JsonValue]
    split: dict[str, JsonValue] | None
    intended_use: dict[str, JsonValue]
    schema: pa.Schema
    files: tuple[DataFile, ...]
    bindings: tuple[Binding, ...]
    jobs: tuple[dict[str, JsonValue], ...]
    counts: Mapping[str, Mapping[str, int]]
    notice: StudentNotice | None = None

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for file in self.files)

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split that has any."""
        found: dict[str, int] = {}
        for file in self.files:
            found[file.split] = found.get(file.split, 0) + file.n_rows
        return found


class Shard(Protocol):
    """One data file that is being written."""

    n_rows: int
    """Rows written so far, as the format counts them (packed rows, where it packs)."""

    dropped: dict[str, int]
    """Rows of the batches that the format left out, by reason: a full phrase, such as `no token ids`."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch: some tens of MiB at most, cut at the same rows whenever the same selection is exported.

        It is in the file when this returns. Batches come in order, from a thread of the file's own.
        """
        ...

    def close(self) -> None:
        """Finish the file. Whoever opened the target closes it."""
        ...


class Exporter(Protocol):
    """A format, bound to its options. Equal batches give equal bytes. Holds nothing between files."""

    suffix: str
    """Ends the data files' names, for example `.parquet`."""

    needs_tokens: bool
    """Whether the batches must have the columns of `batch.TOKENS`."""

    def check(self, bindings: Sequence[Binding]) -> None:
        """Raises `Unfit` where rows of these teachers cannot be written so. Called before anything is written."""
        ...

    def schema(self) -> pa.Schema:
        """The columns of the data files, for the files that describe them."""
        ...

    def open(self, file: IO[bytes], split: str) -> Shard:
        """Begin a data file of one split."""
        ...

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        """Files that belong beside the data, by name: what the trainer reads, `load.py`."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """What a module of a format offers to the registry as `FORMAT`."""

    summary: str
    options: type[FormatOptions]
    build: Callable[[Any], Exporter]
    load: str = ""  # how a person loads it, as Python


@dataclass(slots=True)
class Counted:
    """The two numbers that every shard keeps."""

    n_rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, n: int) -> None:
        if n:
            self.dropped[reason] = self.dropped.get(reason, 0) + n
