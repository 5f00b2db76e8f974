"""A lane that this worker works on: its shards, and whose call is next."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from app.db import lanes
from app.services.generate.gates import LaneGate, Permit
from app.services.generate.replicas import LaneDown
from app.services.generate.work import ShardRun, Unit
from app.storage.segments import Profile
from app.teachers.base import Capabilities

LaneKey = tuple[str, int]  # job id, position of the teacher in the job


@dataclass(slots=True, eq=False)
class LaneState:
    """A lane that this worker works on."""

    spec: lanes.LaneSpec
    capabilities: Capabilities
    gate: LaneGate
    trial: bool  # parked until a first completion: one call at a time
    runs: list[ShardRun] = field(default_factory=list)
    in_flight: int = 0
    down: LaneDown | None = None
    closing: str | None = None  # paused | cancelled: hand the shards back

    def __post_init__(self) -> None:
        self.gate.wanted = self.wanted
        self.gate.head, self.gate.n_pending = self.head, self.pending

    @property
    def key(self) -> LaneKey:
        return (self.spec.job_id, self.spec.teacher)

    def room(self) -> int:
        """About how many more samples may be asked for now."""
        if not self.sends():
            return 0
        return int(min(1 if self.trial else 1_000_000, self.gate.room()))

    def sends(self) -> bool:
        """Whether it may send a call at all, were there room."""
        return self.down is None and self.closing is None and not (self.trial and self.in_flight)

    def pending(self) -> int:
        return sum(len(run.pending) for run in self.runs)

    def full(self) -> bool:
        """Whether it needs no other shard now."""
        return self.closing is not None or self.pending() >= max(1, self.room())

    def wanted(self) -> int:
        """Samples that could be asked for if there were room."""
        return sum(len(unit.sample_indices) for run in self.runs for unit in run.pending)

    def head(self) -> Unit | None:
        """The unit whose turn it is."""
        if self.down or self.closing:
            return None
        return next((run.pending[0] for run in self.runs if run.pending), None)

    def next_call(self) -> tuple[Unit, Permit] | None:
        """The unit whose turn it is and room for it; None where there is no unit, or no room for this one."""
        now = time.monotonic()
        for run in self.runs:
            run.make_due(now)
            if run.pending:
                permit = self.gate.enter(run.pending[0])
                return None if permit is None else (run.pending.popleft(), permit)
        return None


def next_call(lanes: Iterable[LaneState]) -> tuple[LaneState, Unit, Permit] | None:
    """Which lane sends next: priority first, then the fewest calls in flight. None: nothing can go."""
    able = [lane for lane in lanes if lane.sends()]
    if len(able) > 1:
        able.sort(key=lambda lane: (-lane.spec.priority, lane.in_flight))
    for lane in able:
        found = lane.next_call()
        if found is not None:
            return (lane, *found)
    return None


def binding(spec: lanes.LaneSpec, found: Capabilities) -> dict[str, JsonValue]:
    """What a segment's numbers are bound to."""
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


def profile_of(spec: lanes.LaneSpec, default: Profile) -> Profile:
    """How the lane's logprobs are kept: as its project says, else as the settings do."""
    match spec.storage_profile:
        case "fp16" | "compact" as name:
            return replace(default, name=name)
        case _:
            return default
