"""What the engine is told at its start."""

from dataclasses import dataclass

from app.storage.segments import FP16, Profile


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`deadline_s`: for one prompt's samples, calls and waits between attempts together; waiting for room is free."""

    attempts: int
    backoff_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Seconds, counts and names; what each means is said at `app.settings.EngineSettings`."""

    worker_id: str
    host: str
    pid: int
    version: str
    teachers: tuple[str, ...]
    max_in_flight: int
    lease_seconds: float
    flush_seconds: float
    flush_rows: int
    poll_seconds: float
    park_seconds: float
    shard_attempts: int
    grace_seconds: float
    retry: RetryPolicy
    compression_level: int
    profile: Profile = FP16
