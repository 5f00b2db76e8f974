"""A lane that this worker works on: its shards, how many calls it may have in flight, and whether its teacher fits."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import JsonValue

from app.db import lanes
from app.domain.fingerprints import fingerprint
from app.services.generate.calls import LaneDown
from app.services.generate.work import ShardRun, Unit
from app.teachers.base import Capabilities, Teacher

LaneKey = tuple[str, int]  # job id, position of the teacher in the job


@dataclass(slots=True, eq=False)
class LaneState:
    """A lane that this worker works on."""

    spec: lanes.LaneSpec
    teacher: Teacher
    capabilities: Capabilities
    trial: bool  # parked until a first completion: one call at a time
    runs: list[ShardRun] = field(default_factory=list)
    in_flight: int = 0
    grant: int | None = None  # this worker's share of the caps; None: no cap
    limit: float = math.inf  # cut on 429, grows again with each success
    not_before: float = 0.0  # monotonic time before which nothing is sent
    down: LaneDown | None = None
    closing: str | None = None  # paused | cancelled: hand the shards back

    @property
    def key(self) -> LaneKey:
        return (self.spec.job_id, self.spec.teacher)

    @property
    def capped(self) -> bool:
        return self.spec.job_cap is not None or self.spec.teacher_cap is not None

    def room(self) -> int:
        """How many more calls may be sent now."""
        if self.down or self.closing or time.monotonic() < self.not_before:
            return 0
        most = 1 if self.trial else min(self.limit, math.inf if not self.capped else (self.grant or 0))
        return max(0, 1_000_000 if most == math.inf else int(most) - self.in_flight)

    def pending(self) -> int:
        return sum(len(run.pending) for run in self.runs)

    def next_unit(self) -> Unit | None:
        for run in self.runs:
            if run.pending:
                return run.pending.popleft()
        return None


def neediest(lanes: Iterable[LaneState]) -> LaneState | None:
    """Which lane sends next: priority first, then the fewest calls in flight. None: nothing can go."""
    able = [lane for lane in lanes if lane.room() > 0 and any(run.pending for run in lane.runs)]
    return min(able, key=lambda lane: (-lane.spec.priority, lane.in_flight), default=None)


def binding(lane: LaneState) -> dict[str, JsonValue]:
    """What a segment's numbers are bound to."""
    spec, found = lane.spec, lane.capabilities
    stages: list[JsonValue] = [
        {
            "stage": position,
            "sampling": stage.sampling.asked(),
            "n": stage.n,
            "top_logprobs": stage.top_logprobs,
            "elicit": None if stage.elicit is None else stage.elicit.model_dump(mode="json"),
        }
        for position, stage in sorted(spec.stages.items())
    ]
    return {
        "job": spec.job_id,
        "teacher": spec.spec.name,
        "model": spec.spec.model,
        "revision": spec.spec.revision,
        "engine": found.engine,
        "tokenizer_sha256": found.tokenizer_sha256,
        "chat_template_sha256": found.chat_template_sha256,
        "vocab_size": found.vocab_size,
        "logprobs_mode": "raw_logprobs",
        "logprobs_temperature": 1.0,
        "stages": stages,
    }


def unfit(spec: lanes.LaneSpec, found: Capabilities) -> LaneDown | None:
    """Why the lane cannot be worked on with what the probe found; None where it can."""
    name = spec.spec.name
    if not found.reachable:
        return LaneDown(
            "teacher-unavailable", f"teacher {name!r}: {'; '.join(found.problems) or 'unreachable'}"
        )
    if spec.identity_sha256 is not None and fingerprint(found.identity()) != spec.identity_sha256:
        return LaneDown(
            "teacher-identity-changed",
            f"teacher {name!r} is not the one that this job began with: it is now {found.identity()}. "
            "Bring the first one back, or cancel the job and submit it again.",
        )
    wanted = max(stage.top_logprobs for stage in spec.stages.values())
    if wanted > found.max_top_logprobs:
        why = "; ".join(found.problems)
        return LaneDown(
            "teacher-unsupported",
            f"the job wants {wanted} top logprobs and teacher {name!r} gives at most {found.max_top_logprobs}"
            + (f": {why}" if why else "."),
        )
    return None
