"""What the runner of batches is told at its start."""

from collections.abc import Callable
from dataclasses import dataclass

from app.storage.segments import FP16, Profile
from app.teachers.base import TeacherSpec
from app.teachers.batches import BatchTeacher

BuildBatches = Callable[[TeacherSpec], BatchTeacher]


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """`look_seconds`: how often a provider is asked how far a batch is. `rounds`: batches that a sample may be in.

    The rest is said at `app.settings.EngineSettings`.
    """

    worker_id: str
    teachers: tuple[str, ...]
    lease_seconds: float
    poll_seconds: float
    look_seconds: float
    park_seconds: float
    rounds: int
    flush_rows: int
    compression_level: int
    profile: Profile = FP16
    most_open: int = 10  # batches of one lane at the provider at a time
