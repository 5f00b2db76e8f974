"""What there is to do: a shard's prompts, less what is recorded already."""

import hashlib
import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Engine

from app.db import checkpoints, lanes
from app.db.session import reading
from app.db.shards import Claim
from app.domain.fingerprints import canonical_json
from app.domain.sampling import SamplingOverrides, SamplingParameters
from app.teachers.base import GenerateRequest, Turn


@dataclass(slots=True, eq=False)
class ShardRun:
    """A shard under this worker's lease, while it is worked on. Belongs to the event loop."""

    claim: Claim
    lane: lanes.LaneSpec
    n_missing: int  # samples that are neither recorded nor on their way to the checkpoint
    pending: deque["Unit"] = field(default_factory=deque)
    kept_back: deque["Unit"] = field(default_factory=deque)  # a careful run's: they become pending one by one
    delayed: list[tuple[float, int, "Unit"]] = field(default_factory=list)  # a heap by monotonic time
    sequence: int = 0
    lost: bool = False  # another worker owns it, or the job was cancelled: drop everything

    @property
    def key(self) -> tuple[str, int]:
        return (self.lane.job_id, self.lane.teacher)

    def put_back(self, unit: "Unit", due: float, now: float) -> None:
        """The unit is to be asked again, not before `due` (monotonic time)."""
        if due <= now:
            self.pending.appendleft(unit)
        else:
            heapq.heappush(self.delayed, (due, id(unit), unit))

    def make_due(self, now: float) -> None:
        """Units that have waited long enough go to the head of the queue."""
        while self.delayed and self.delayed[0][0] <= now:
            self.pending.appendleft(heapq.heappop(self.delayed)[2])

    def forget(self) -> None:
        """Nothing more of this shard is asked."""
        self.pending.clear()
        self.kept_back.clear()
        self.delayed.clear()


@dataclass(slots=True, eq=False)
class Unit:
    """One prompt and the samples that are still to be made of it."""

    run: ShardRun
    prompt_number: int
    prompt_license: str
    messages: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] | None
    response_schema: dict[str, Any] | None
    sampling: SamplingParameters
    sampling_json: str | None  # where it differs from the stage's
    sample_indices: tuple[int, ...]  # those that have no outcome yet
    content: "hashlib._Hash"
    prefix: bytes  # hash of what comes before the last turn; of the prompt where that is all there is
    prompt_bytes: int  # of the prompt's JSON: it has no more tokens than that, apart from the chat template's
    attempts: int = 0
    used_s: float = 0.0  # of the deadline: calls and waits between attempts
    refusals: int = 0  # as too much
    answered_then: int = 0  # how many answers the teacher had given at the first of them

    def content_hash(self, index: int) -> bytes:
        """SHA-256 over teacher identity, prompt, sampling parameters and sample index."""
        own = self.content.copy()
        own.update(b"%d" % index)
        return own.digest()

    def request(self, indices: tuple[int, ...], deadline_s: float) -> GenerateRequest:
        claim = self.run.claim
        stage = self.run.lane.stages[claim.stage]
        return GenerateRequest(
            messages=self.messages,
            sampling=self.sampling,
            sample_indices=indices,
            top_logprobs=stage.top_logprobs,
            tools=self.tools,
            response_schema=self.response_schema,
            elicit=stage.elicit,
            request_id=f"{claim.job_id}-{claim.stage}-{self.prompt_number}-{claim.teacher}-{indices[0]}",
            priority=self.run.lane.priority,
            deadline_s=deadline_s,
        )


def load_run(database: Engine, claim: Claim, lane: lanes.LaneSpec, group_siblings: bool) -> ShardRun:
    """Read a claimed shard: its prompts, and which of their samples are missing."""
    with reading(database) as connection:
        prompts = checkpoints.prompts_of(
            connection, claim.job_id, claim.first_prompt, claim.end_prompt, lane.spec.name
        )
        done = checkpoints.recorded(connection, claim)
    run = ShardRun(claim=claim, lane=lane, n_missing=0)
    stage = lane.stages[claim.stage]
    origin = _origin(lane, stage)
    sampled = canonical_json(stage.sampling.asked())
    sharing: dict[bytes, list[Unit]] = {}
    for prompt in prompts:
        missing = tuple(i for i in range(stage.n) if (prompt.number, i) not in done)
        if not missing:
            continue
        run.n_missing += len(missing)
        for indices in (missing,) if group_siblings else tuple((i,) for i in missing):
            unit = _unit(run, prompt, stage, origin, sampled, indices)
            sharing.setdefault(unit.prefix, []).append(unit)
    # One after the other, so that an engine still has in its cache what they begin with.
    run.pending.extend(unit for units in sharing.values() for unit in units)
    return run


def _origin(lane: lanes.LaneSpec, stage: lanes.StageSpec) -> bytes:
    """What of a content hash is the same for a whole lane: the teacher and what is asked besides the prompt."""
    return canonical_json(
        {
            "driver": lane.spec.driver,
            "model": lane.spec.model,
            "revision": lane.spec.revision,
            "identity": lane.identity_sha256.hex() if lane.identity_sha256 else None,
            "top_logprobs": stage.top_logprobs,
            "elicit": None if stage.elicit is None else stage.elicit.model_dump(mode="json"),
        }
    )


def _unit(
    run: ShardRun,
    prompt: checkpoints.PromptToAnswer,
    stage: lanes.StageSpec,
    origin: bytes,
    sampled: bytes,
    indices: tuple[int, ...],
) -> Unit:
    """`origin`, `sampled`: what of the content hash is the lane's and, for prompts without parameters, the stage's."""
    body = orjson.loads(prompt.body)
    own = body.get("parameters")
    sampling, sampling_json = stage.sampling, None
    if own is not None:
        sampling = sampling.overridden(SamplingOverrides.model_validate(own))
        sampled, sampling_json = canonical_json(sampling.asked()), orjson.dumps(sampling.asked()).decode()
    asked = {name: body[name] for name in ("messages", "tools", "response_schema") if name in body}
    prompt_json = canonical_json(asked)
    earlier = asked["messages"][:-1]
    shared = canonical_json({**asked, "messages": earlier}) if earlier else prompt_json
    content = hashlib.sha256(origin)
    content.update(prompt_json)
    content.update(sampled)
    return Unit(
        run=run,
        prompt_number=prompt.number,
        prompt_license=prompt.license,
        messages=tuple(body["messages"]),
        tools=tuple(body["tools"]) if "tools" in body else None,
        response_schema=body.get("response_schema"),
        sampling=sampling,
        sampling_json=sampling_json,
        sample_indices=indices,
        content=content,
        prefix=hashlib.blake2b(shared, digest_size=16).digest(),
        prompt_bytes=len(prompt.body),
    )
