"""From a row back to all that it came from; from prompts or teachers forward to the exports that hold their rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, func, select

from app.db.export_models import Export, ExportMember, Takedown, TakedownExport
from app.db.models import (
    ApiKey,
    Completion,
    Job,
    Lane,
    PromptRow,
    PromptSet,
    Segment,
    Shard,
    ShardAttempt,
    Stage,
)
from app.domain.fingerprints import source_key
from app.domain.lifecycle import ExportStatus
from app.domain.membership import CHUNK, holds, unpacked

Numbers = NDArray[np.int64]

_AT_ONCE = 500
_PAGE = 50_000


def completion(
    connection: Connection, project_id: str, job_id: str, stage: int, number: int, teacher: int, sample: int
) -> Row[Any] | None:
    """A completion with its job, lane, stage, prompt, set, the worker's hold, its segment and the key that asked."""
    return connection.execute(
        select(
            Completion.__table__,
            Job.name.label("job_name"),
            Job.prompt_set_id,
            Job.code_version,
            Job.intended_use,
            Job.policy_decision_id,
            Job.created_by.label("asked_by"),
            Job.created_at.label("asked_at"),
            ApiKey.name.label("asked_by_name"),
            Lane.teacher_id,
            Lane.teacher_name,
            Lane.driver,
            Lane.model,
            Lane.revision,
            Lane.access_route,
            Lane.identity_sha256,
            Lane.trained_on,
            Stage.name.label("stage_name"),
            Stage.sampling.label("stage_sampling"),
            Stage.top_logprobs,
            Stage.elicit,
            PromptRow.source,
            PromptRow.custom_id,
            PromptRow.license_assumed,
            PromptRow.content_hash.label("prompt_hash"),
            PromptRow.removed_by.label("prompt_removed_by"),
            PromptSet.name.label("set_name"),
            PromptSet.content_hash.label("set_hash"),
            PromptSet.created_by.label("set_created_by"),
            ShardAttempt.owner.label("worker"),
            ShardAttempt.claimed_at,
            ShardAttempt.outcome,
            Segment.path.label("segment_path"),
            Segment.sha256.label("segment_sha256"),
            Segment.generation,
        )
        .join(Job, Job.id == Completion.job_id)
        .join(Lane, (Lane.job_id == Completion.job_id) & (Lane.teacher == Completion.teacher))
        .join(Stage, (Stage.job_id == Completion.job_id) & (Stage.position == Completion.stage))
        .join(
            PromptRow,
            (PromptRow.prompt_set_id == Job.prompt_set_id) & (PromptRow.number == Completion.prompt_number),
        )
        .join(PromptSet, PromptSet.id == Job.prompt_set_id)
        .outerjoin(ApiKey, ApiKey.id == Job.created_by)
        .outerjoin(
            ShardAttempt,
            (ShardAttempt.shard_id == Completion.shard_id) & (ShardAttempt.epoch == Completion.epoch),
        )
        .outerjoin(Shard, Shard.id == Completion.shard_id)
        .outerjoin(Segment, Segment.id == Shard.segment_id)
        .where(
            Job.project_id == project_id,
            Completion.job_id == job_id,
            Completion.stage == stage,
            Completion.prompt_number == number,
            Completion.teacher == teacher,
            Completion.sample_index == sample,
        )
    ).one_or_none()


def exports_of_row(
    connection: Connection, job_id: str, stage: int, number: int, teacher: int, sample: int
) -> dict[str, str]:
    """Export → file, of those that hold this very completion."""
    chunk = number // CHUNK
    rows = connection.execute(
        select(ExportMember.export_id, ExportMember.file, ExportMember.bits).where(
            ExportMember.job_id == job_id,
            ExportMember.teacher == teacher,
            ExportMember.chunk == chunk,
            ExportMember.stage == stage,
            ExportMember.sample_index == sample,
        )
    )
    return {row.export_id: row.file for row in rows if holds(chunk, row.bits, number)}


def exports_of_lanes(connection: Connection, lanes: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Export → rows of these (job, lane)."""
    found: dict[str, int] = {}
    for job_id, teacher in lanes:
        rows = connection.execute(
            select(ExportMember.export_id, func.sum(ExportMember.n_rows))
            .where(ExportMember.job_id == job_id, ExportMember.teacher == teacher)
            .group_by(ExportMember.export_id)
        )
        for export_id, n in rows:
            found[export_id] = found.get(export_id, 0) + int(n)
    return found


def exports_of_prompts(connection: Connection, prompts: dict[str, Numbers]) -> dict[str, int]:
    """Prompt set → ascending prompt numbers, to export → rows that were made of them."""
    found: dict[str, int] = {}
    for set_id, numbers in prompts.items():
        lanes = connection.execute(
            select(Lane.job_id, Lane.teacher)
            .join(Job, Job.id == Lane.job_id)
            .where(Job.prompt_set_id == set_id)
        ).all()
        chunks = np.unique(numbers // CHUNK).tolist()
        for job_id, teacher in lanes:
            for start in range(0, len(chunks), _AT_ONCE):
                rows = connection.execute(
                    select(ExportMember.export_id, ExportMember.chunk, ExportMember.bits).where(
                        ExportMember.job_id == job_id,
                        ExportMember.teacher == teacher,
                        ExportMember.chunk.in_(chunks[start : start + _AT_ONCE]),
                    )
                )
                for export_id, chunk, bits in rows:
                    low, high = np.searchsorted(numbers, [chunk * CHUNK, (chunk + 1) * CHUNK])
                    n = int(np.isin(unpacked(chunk, bits), numbers[low:high], assume_unique=True).sum())
                    if n:
                        found[export_id] = found.get(export_id, 0) + n
    return found


def prompts_of_source(connection: Connection, project_id: str, source: str) -> dict[str, Numbers]:
    """Prompt set → ascending numbers of the prompts from a source."""
    found: dict[str, list[int]] = {}
    for set_id, number in _source_rows(connection, project_id, source):
        found.setdefault(set_id, []).append(number)
    return {set_id: np.sort(np.array(numbers, np.int64)) for set_id, numbers in found.items()}


def _source_rows(connection: Connection, project_id: str, source: str) -> Iterator[tuple[str, int]]:
    query = (
        select(PromptRow.prompt_set_id, PromptRow.number)
        .join(PromptSet, PromptSet.id == PromptRow.prompt_set_id)
        .where(
            PromptRow.source_key == source_key(source),
            PromptRow.source == source,
            PromptSet.project_id == project_id,
        )
    )
    streamed = {"stream_results": True, "max_row_buffer": 10_000}
    with connection.execute(query, execution_options=streamed) as rows:
        for portion in rows.partitions(_PAGE):
            yield from ((row[0], row[1]) for row in portion)


def as_numbers(prompts: Mapping[str, Sequence[int]]) -> dict[str, Numbers]:
    return {set_id: np.array(numbers, np.int64) for set_id, numbers in prompts.items()}


def prompts_of_set(connection: Connection, set_id: str) -> Numbers:
    """All that are not taken down, ascending."""
    query = (
        select(PromptRow.number)
        .where(PromptRow.prompt_set_id == set_id, PromptRow.removed_by.is_(None))
        .order_by(PromptRow.number)
    )
    return np.array(connection.execute(query).scalars().all(), np.int64)


def lanes_of_teacher(connection: Connection, teacher_id: str) -> list[tuple[str, int]]:
    rows = connection.execute(select(Lane.job_id, Lane.teacher).where(Lane.teacher_id == teacher_id))
    return sorted((row.job_id, row.teacher) for row in rows)


def exports(connection: Connection, export_ids: Sequence[str]) -> list[Row[Any]]:
    """Exports that were whole once (a deleted one may have trained a student), newest first."""
    found: list[Row[Any]] = []
    for start in range(0, len(export_ids), _AT_ONCE):
        found += connection.execute(  # type: ignore[arg-type] # rows, typed
            select(
                Export.id, Export.name, Export.status, Export.format, Export.created_by, Export.created_at
            ).where(
                Export.id.in_(export_ids[start : start + _AT_ONCE]),
                Export.status.in_((ExportStatus.COMPLETED, ExportStatus.DELETED)),
                Export.manifest.is_not(None),
            )
        ).all()
    return sorted(found, key=lambda row: str(row.id), reverse=True)


def taints(connection: Connection, export_ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    """Export → takedowns of rows that it holds: (takedown_id, n_rows, withdrawn_at, why, created_at)."""
    found: dict[str, list[Row[Any]]] = {}
    for start in range(0, len(export_ids), _AT_ONCE):
        rows = connection.execute(
            select(TakedownExport.__table__, Takedown.why, Takedown.created_at)
            .join(Takedown, Takedown.id == TakedownExport.takedown_id)
            .where(TakedownExport.export_id.in_(export_ids[start : start + _AT_ONCE]))
            .order_by(TakedownExport.takedown_id)
        )
        for row in rows:
            found.setdefault(row.export_id, []).append(row)
    return found
