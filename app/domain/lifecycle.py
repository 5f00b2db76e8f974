"""Statuses and the moves between them."""

from enum import StrEnum

from app.errors import IllegalTransition


class JobStatus(StrEnum):
    READY = "ready"  # accepted, nothing made yet
    RUNNING = "running"
    PAUSED = "paused"  # by a person
    PARKED = "parked"  # by the engine: waits for a teacher, a budget or a decision
    FINALIZING = "finalizing"  # all rows are there; last segments are written
    COMPLETED = "completed"
    FAILED = "failed"  # nothing but failures
    CANCELLED = "cancelled"


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
CLAIMABLE = frozenset({JobStatus.READY, JobStatus.RUNNING})

_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.READY: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.PARKED, JobStatus.CANCELLED, JobStatus.FINALIZING}
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.PAUSED, JobStatus.PARKED, JobStatus.FINALIZING, JobStatus.CANCELLED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.READY, JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.PARKED: frozenset({JobStatus.READY, JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.FINALIZING: frozenset(
        {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.RUNNING}
    ),
    JobStatus.COMPLETED: frozenset({JobStatus.RUNNING}),  # retry of failed rows
    JobStatus.FAILED: frozenset({JobStatus.RUNNING}),
    JobStatus.CANCELLED: frozenset(),
}


def check_move(current: JobStatus, wanted: JobStatus) -> None:
    """Raises `IllegalTransition` where a job cannot go from one status to the other."""
    if wanted not in _MOVES[current]:
        allowed = ", ".join(sorted(_MOVES[current])) or "nothing: this status is final"
        raise IllegalTransition(
            f"a job that is {current} cannot become {wanted}; from here it can become: {allowed}"
        )


class ShardStatus(StrEnum):
    READY = "ready"
    LEASED = "leased"
    FINISHED = "finished"


class Execution(StrEnum):
    """How the samples of a lane are asked for."""

    CALLS = "calls"  # one call each, answered while it is waited for
    BATCH = "batch"  # through the provider's batch API: hours later, for about half the price


class ProviderBatchStatus(StrEnum):
    PLANNED = "planned"  # its shards are chosen, the provider knows nothing yet
    SUBMITTING = "submitting"  # being handed over: whether the provider has it is not known
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    ENDED = "ended"  # the provider has results, they are not all recorded
    COLLECTED = "collected"
    FAILED = "failed"  # without results; its samples go into another batch
    CANCELLED = "cancelled"  # before the provider had it


BATCH_OVER = frozenset(
    {ProviderBatchStatus.COLLECTED, ProviderBatchStatus.FAILED, ProviderBatchStatus.CANCELLED}
)


class CompletionStatus(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    REMOVED = "removed"  # taken down: its text and tokens are gone, its hashes stay
    RETRY = "retry"  # failed once, asked for again: the row is replaced by the next outcome


class ExportStatus(StrEnum):
    READY = "ready"
    RUNNING = "running"
    PARKED = "parked"  # waits for the storage or after an error; `error` says for what; tried again by itself
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"  # the files are gone, the record and its manifest stay


class TakedownStatus(StrEnum):
    READY = "ready"
    RUNNING = "running"
    COMPLETED = "completed"
