"""The policy at an export: judged when it is asked for and again when it is made; rows at fault are left out only on
request, and counted.

A part is the rows of one teacher and one prompt licence; its key names both. What a part may hold is known before a row
is read (from the jobs' prompt sets), what it does hold when all are written: both are judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import JsonValue
from sqlalchemy import Connection

from app.db import export_rows
from app.db import policy as policy_rows
from app.domain.fingerprints import new_id
from app.domain.sampling import IntendedUse
from app.errors import PolicyRefusal
from app.policy.decisions import Decision, require_allowed
from app.policy.parts import Part, TeacherRef
from app.policy.rules import Moment, PolicyRules
from app.services.export.facts import JobFacts, LaneFacts
from app.services.export.spec import Selection
from app.services.policy import MAX_PARTS, Judge, part_key, teacher_ref, together

DROP = "drop"


@dataclass(slots=True)
class Kinds:
    """The parts that the selected rows can belong to. `labels`: (job, lane) → how the teacher is named in keys."""

    labels: dict[tuple[str, int], str]
    teachers: dict[str, TeacherRef]
    expected: list[Part] = field(default_factory=list)

    def exact(self, counts: Mapping[str, int]) -> list[Part]:
        """The parts with as many rows as were written. Keys are this module's own, and none was unknown."""
        known = {part.key: part for part in self.expected}
        return [
            known[key].model_copy(update={"rows": rows, "examples": ()})
            for key, rows in sorted(counts.items())
            if rows
        ]


def kinds(connection: Connection, jobs: Sequence[JobFacts], selection: Selection) -> Kinds:
    """What the selection can hold, at most. Raises `InvalidInput` where that is too much to be judged."""
    labels = _labels(jobs)
    found = Kinds(labels, {labels[job.id, lane.position]: _ref(lane) for job in jobs for lane in job.lanes})
    completed = export_rows.completed(connection, [job.id for job in jobs])
    parts: list[Part] = []
    for job in jobs:
        n = sum(stage.n for stage in job.stages)
        for counted in policy_rows.parts(connection, job.prompt_set, MAX_PARTS + 1):
            if selection.prompt_licenses and counted.license not in selection.prompt_licenses:
                continue
            for lane in job.lanes:
                if counted.teacher not in ("", lane.teacher) or not completed.get((job.id, lane.position)):
                    continue
                label = labels[job.id, lane.position]
                parts.append(
                    Part(
                        key=part_key(label, counted.license, counted.license_assumed),
                        teachers=(found.teachers[label],),
                        prompt_license=counted.license,
                        prompt_license_assumed=counted.license_assumed,
                        rows=counted.n_prompts * n,
                        examples=(
                            f"{job.id}/{job.stages[0].position}/{counted.first_prompt}/{lane.position}/0",
                        )
                        if job.stages
                        else (),
                    )
                )
    found.expected = together(parts)
    return found


def _labels(jobs: Sequence[JobFacts]) -> dict[tuple[str, int], str]:
    """The teacher's name; with the job's id where jobs knew different teachers by one name."""
    by_name: dict[str, set[TeacherRef]] = {}
    for job in jobs:
        for lane in job.lanes:
            by_name.setdefault(lane.teacher, set()).add(_ref(lane))
    return {
        (job.id, lane.position): lane.teacher
        if len(by_name[lane.teacher]) == 1
        else f"{lane.teacher} ({job.id})"
        for job in jobs
        for lane in job.lanes
    }


def _ref(lane: LaneFacts) -> TeacherRef:
    return teacher_ref(lane.teacher, lane, lane.base_url, lane.past_hosts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an export may hold. `left_out`: keys of parts whose rows are not written, because it was asked so."""

    decision_id: str
    decision: Decision
    left_out: frozenset[str]


def verdict(
    connection: Connection,
    project_id: str,
    jobs: Sequence[JobFacts],
    selection: Selection,
    use: IntendedUse,
    on_refusal: str | None,
    rules: PolicyRules,
) -> tuple[Kinds, Verdict]:
    """Judge what the export can hold. Raises `PolicyRefusal` where it is not permitted, and not to be cut down."""
    found = kinds(connection, jobs, selection)
    judge = Judge.of(connection, project_id, rules)
    decision = judge.decide(connection, use, found.expected, Moment.EXPORT)
    decision_id = new_id("dec")
    if decision.allowed:
        return found, Verdict(decision_id, decision, frozenset())
    if on_refusal == DROP and decision.offer is not None:
        return found, Verdict(decision_id, decision, frozenset(decision.offer.leave_out))
    _refuse(decision, decision_id)
    raise AssertionError("a block was not refused")


def _refuse(decision: Decision, decision_id: str) -> None:
    try:
        require_allowed(decision, decision_id)
    except PolicyRefusal as refusal:
        offer = decision.offer
        if offer is None:
            refusal.detail += "\nNo row of this selection would be left without the rows at fault."
        else:
            refusal.detail += (
                f'\nWith `on_refusal: "drop"` the export is made without {", ".join(offer.leave_out)}: '
                f"{offer.rows_left_out:,} rows at most, which its manifest names and counts."
            )
        raise


class Sieve:
    """Tells of each row of a portion which part it is of, and whether it is written."""

    def __init__(self, found: Kinds, left_out: frozenset[str]) -> None:
        self._labels = {f"{job}/{lane}": label for (job, lane), label in found.labels.items()}
        self._known = {part.key for part in found.expected}
        self.left_out = left_out

    def parts(
        self, portion: pa.RecordBatch
    ) -> tuple["NDArray[np.bool_] | None", dict[str, int], dict[str, int]]:
        """(rows that are written, or None for all; part → rows written; part → rows left out)."""
        lanes = pc.binary_join_element_wise(
            portion.column("job"), portion.column("lane").cast(pa.string()), "/"
        ).dictionary_encode()
        names = pa.array([self._labels[one] for one in lanes.dictionary.to_pylist()], pa.string())
        assumed = pc.if_else(portion.column("prompt_license_assumed"), " (assumed)", "")
        keys = pc.binary_join_element_wise(
            names.take(lanes.indices),
            pc.binary_join_element_wise(portion.column("prompt_license"), assumed, ""),
            " | ",
        ).dictionary_encode()
        values: list[str] = keys.dictionary.to_pylist()
        if unknown := set(values) - self._known:
            raise ValueError(f"rows of parts that were never judged: {', '.join(sorted(unknown))}")
        indices = keys.indices.to_numpy(zero_copy_only=False)
        counts = dict(zip(values, np.bincount(indices, minlength=len(values)).tolist(), strict=True))
        dropped = {key: n for key, n in counts.items() if key in self.left_out}
        if not dropped:
            return None, counts, {}
        kept = np.array([value not in self.left_out for value in values], np.bool_)[indices]
        return kept, {key: n for key, n in counts.items() if key not in dropped}, dropped


def told(
    decision_id: str, decision: Decision, first: Decision, left_out: Mapping[str, int]
) -> dict[str, JsonValue]:
    """What the manifest says: by which policy, under which licence, and what was left out and why."""
    return {
        "decision": decision_id,
        "outcome": decision.outcome,
        "policy_version": decision.policy_version,
        "policy_digest": decision.policy_digest,
        "license": decision.license.license,
        "license_by_part": dict(decision.license.by_part),
        "rows_by_part": {part.key: part.rows for part in decision.parts},
        "warnings": [f"{one.message} {one.proceed}" for one in decision.warnings],
        "n_left_out": sum(left_out.values()),
        "left_out": [
            {"part": key, "n_rows": n, "reasons": list(_reasons(first, key))}
            for key, n in sorted(left_out.items())
        ],
    }


def _reasons(decision: Decision, key: str) -> Sequence[str]:
    reasons = [f"{one.message} {one.proceed}" for one in decision.blocks if key in one.parts]
    return reasons or ["It does not go together with the parts that were kept."]


def by_part(files: Sequence[Any], name: str) -> dict[str, int]:
    """Sum of one of the counts that files keep by part."""
    total: dict[str, int] = {}
    for file in files:
        for key, n in ((file.counts or {}).get(name) or {}).items():
            total[key] = total.get(key, 0) + n
    return total
