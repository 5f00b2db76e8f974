"""Providers' batch APIs: thousands of requests in one go, answered within a day, for about half the price."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from app.teachers.base import GenerateRequest, Generation, Teacher

BATCH_OPTION = "batch_max_requests"  # of a teacher: smaller batches than its provider takes

# A request's name at the provider: batch, stage, prompt number, first sample index, how many samples. It is unique
# over all batches, fits the narrowest rule (Anthropic's: 64 characters of these), and tells a stranger's batch apart.
_CUSTOM_ID = re.compile(r"(?P<batch>[A-Za-z0-9_]+)-(\d+)-(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class RequestName:
    batch: str
    stage: int
    prompt_number: int
    first_sample: int
    samples: int

    def __str__(self) -> str:
        return f"{self.batch}-{self.stage}-{self.prompt_number}-{self.first_sample}-{self.samples}"


def parsed_name(custom_id: str) -> RequestName | None:
    """None: nothing that this service has named."""
    found = _CUSTOM_ID.fullmatch(custom_id)
    return None if found is None else RequestName(found[1], *(int(found[i]) for i in range(2, 6)))


class BatchState(StrEnum):
    RUNNING = "running"
    ENDED = "ended"  # there are results, perhaps not of all requests
    FAILED = "failed"  # as a whole, without results
    UNKNOWN = "unknown"  # the provider does not know it (any more)


@dataclass(frozen=True, slots=True)
class BatchTold:
    """What the provider tells of a batch."""

    provider_id: str
    state: BatchState
    status: str  # in the provider's own words
    n_completed: int = 0
    n_failed: int = 0
    error: str | None = None  # why it failed
    throttled: bool = False  # it failed because too much is queued there: later it will do
    files: dict[str, str] = field(default_factory=dict)  # what lies at the provider, by role
    ours: bool | None = None  # None: that cannot be told before it has ended


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Of one batch."""

    max_requests: int
    max_bytes: int

    def at_most(self, max_requests: int | None) -> "BatchLimits":
        """The same with no more requests than were asked for, where that was."""
        return BatchLimits(min(self.max_requests, max_requests or self.max_requests), self.max_bytes)


class BatchTeacher(Protocol):
    """A driver's batch API. Methods raise what `Teacher.generate` raises, and do not retry."""

    @property
    def teacher(self) -> Teacher: ...

    @property
    def limits(self) -> BatchLimits: ...

    def line(self, request: GenerateRequest, custom_id: str) -> bytes:
        """One request, a line without its end. Raises `Unsupported`."""

    async def submit(self, token: str, file: Path, n_requests: int, again: bool) -> BatchTold:
        """Hand over a file of lines. `again`: an earlier try may have left its file there."""

    async def find(self, token: str, since: float, n_requests: int) -> list[BatchTold]:
        """Batches that may have been submitted under this token since then (seconds since 1970), surest first."""

    async def look(self, provider_id: str) -> BatchTold: ...

    async def cancel(self, provider_id: str) -> None: ...

    async def fetch(self, told: BatchTold, folder: Path) -> list[Path]:
        """Download the results: files of lines."""

    def custom_id(self, line: bytes) -> str | None: ...

    def answer(self, line: bytes, request: GenerateRequest) -> list[Generation]:
        """The generations of one result. Raises what kept the provider from making them."""

    async def forget(self, told: BatchTold) -> None:
        """Delete what lies at the provider: everything is recorded here."""

    async def aclose(self) -> None: ...
