"""A batch's missing samples as the lines of a file, each with a name that finds it again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from app.db import provider_batches
from app.db.lanes import LaneSpec
from app.db.provider_batches import Held
from app.db.session import reading, transaction
from app.errors import LeaseLost, PermanentTeacherError, Unsupported
from app.services.generate.work import ShardRun, Unit, load_run
from app.teachers.batches import BatchTeacher, RequestName

_DEADLINE_S = 24 * 3600.0  # of a request that the provider answers when it likes


@dataclass(frozen=True, slots=True)
class Written:
    """What stands in the file."""

    n_requests: int
    n_samples: int


def requests_of(run: ShardRun, batch_id: str) -> Iterator[tuple[RequestName, Unit, tuple[int, ...]]]:
    """(name, unit, sample indices) of each request for what is missing of a shard.

    One request asks for consecutive samples only, so that its name can tell them.
    """
    for unit in run.pending:
        for indices in _consecutive(unit.sample_indices):
            name = RequestName(batch_id, run.claim.stage, unit.prompt_number, indices[0], len(indices))
            yield name, unit, indices


def _consecutive(indices: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    start = 0
    for place in range(1, len(indices) + 1):
        if place == len(indices) or indices[place] != indices[place - 1] + 1:
            yield indices[start:place]
            start = place


def write_requests(
    database: Engine, held: Held, lane: LaneSpec, native_n: bool, teacher: BatchTeacher, file: Path
) -> Written:
    """Write the lines of all shards of a batch that fit the provider's bounds; the other shards leave the batch.

    A request that the driver refuses has no line: it is a failed row when the batch is collected. Raises `LeaseLost`,
    and `Unsupported` where not even one shard fits.
    """
    with reading(database) as connection:
        claims = provider_batches.shards_of(connection, held.id)
    limits = teacher.limits
    n_requests = n_samples = n_bytes = kept = 0
    with file.open("wb") as lines:
        for claim in claims:
            run = load_run(database, claim, lane, native_n)
            made = [
                (line, len(indices))
                for name, unit, indices in requests_of(run, held.id)
                if (line := _line(teacher, unit, indices, name)) is not None
            ]
            size = sum(len(line) + 1 for line, _ in made)
            if n_bytes + size > limits.max_bytes or n_requests + len(made) > limits.max_requests:
                break
            lines.writelines(line + b"\n" for line, _ in made)
            n_requests += len(made)
            n_samples += sum(samples for _, samples in made)
            n_bytes += size
            kept += 1
    if not kept and claims:
        raise Unsupported(
            f"one shard of this job is more than a batch may hold ({limits.max_requests} requests, "
            f"{limits.max_bytes >> 20} MiB): submit it with a smaller shard size"
        )
    if kept < len(claims):
        with transaction(database) as connection:
            if not provider_batches.still_held(connection, held):
                raise LeaseLost(f"batch {held.id} is another worker's")
            provider_batches.untie(
                connection, held.id, [claim.shard_id for claim in claims[kept:]], took_part=False
            )
    return Written(n_requests, n_samples)


def _line(teacher: BatchTeacher, unit: Unit, indices: tuple[int, ...], name: RequestName) -> bytes | None:
    try:
        return teacher.line(unit.request(indices, _DEADLINE_S), str(name))
    except PermanentTeacherError:
        return None


def refusal_of(
    teacher: BatchTeacher, unit: Unit, indices: tuple[int, ...], name: RequestName
) -> PermanentTeacherError | None:
    """Why a request could not be put into words; None where it could."""
    try:
        teacher.line(unit.request(indices, _DEADLINE_S), str(name))
    except PermanentTeacherError as error:
        return error
    return None
