"""The engine's side of the database: each method is one read or one short transaction, called in a thread."""

import time

from pydantic import JsonValue
from sqlalchemy import Engine

from app.db import budgets, lanes, shards, workers
from app.db.session import reading, transaction
from app.services.generate.config import EngineConfig
from app.services.generate.lane import LaneKey
from app.services.generate.replicas import BudgetReached, LaneDown


class Ledger:
    """`_claimed_at`: when a lane of this worker last got a shard, by the monotonic clock. `_unsure`: the answer to a
    claim was lost, so that it may have been done.
    """

    def __init__(self, database: Engine, config: EngineConfig) -> None:
        self._database = database
        self._config = config
        self._owner = config.worker_id
        self._claimed_at: dict[LaneKey, float] = {}
        self._unsure = False

    def claim(self, full: set[LaneKey], held: set[int]) -> tuple[shards.Claim, bool] | None:
        """The next shard for this worker, and whether its lane was parked.

        `full`: lanes that need none now. `held`: shards that this worker knows of.
        """
        unsure, self._unsure = self._unsure, True  # until it is known how this one ended
        if unsure:
            with transaction(self._database) as connection:
                shards.release_strays(connection, self._owner, held)
        found = self._claim(full)
        self._unsure = False
        return found

    def _claim(self, full: set[LaneKey]) -> tuple[shards.Claim, bool] | None:
        with reading(self._database) as connection:
            found = shards.candidates(connection, self._config.teachers)
        # Among equals the lane goes first that has waited longest here.
        before = self._claimed_at
        found.sort(key=lambda c: (-c.priority, c.leased, before.get((c.job_id, c.teacher), 0.0)))
        for candidate in found:
            if (candidate.job_id, candidate.teacher) in full:
                continue
            with transaction(self._database) as connection:
                claim = shards.claim(
                    connection, candidate, self._owner, self._config.lease_seconds, self._config.park_seconds
                )
            if claim is not None:
                self._claimed_at[(claim.job_id, claim.teacher)] = time.monotonic()
                return claim, candidate.parked
        return None

    def load_lane(self, claim: shards.Claim) -> lanes.LaneSpec:
        with reading(self._database) as connection:
            return lanes.load(connection, claim.job_id, claim.teacher)

    def pin_identity(self, spec: lanes.LaneSpec, identity: bytes, capabilities: dict[str, JsonValue]) -> None:
        with transaction(self._database) as connection:
            lanes.pin_identity(connection, spec.job_id, spec.teacher, identity, capabilities)

    def statuses(self, jobs: list[str]) -> dict[str, str]:
        with reading(self._database) as connection:
            return lanes.statuses(connection, jobs)

    def beat(
        self, held: list[shards.Lease], in_flight: int, unflushed: int, stopping: bool
    ) -> set[shards.Lease]:
        """Prolong worker and leases. Returns the leases that are still ours."""
        alive = self._config.lease_seconds * 2
        with transaction(self._database) as connection:
            if not workers.beat(connection, self._owner, alive, in_flight, unflushed, stopping):
                workers.enter(
                    connection, self._owner, self._config.host, self._config.pid, self._config.version, alive
                )
            return shards.extend(connection, self._owner, held, self._config.lease_seconds)

    def park(self, spec: lanes.LaneSpec, down: LaneDown, claims: list[shards.Claim]) -> None:
        """A lane whose budget is reached waits for a person; where the cap was raised meanwhile, it does not wait."""
        seconds: float | None = self._config.park_seconds
        with transaction(self._database) as connection:
            if isinstance(down, BudgetReached):
                seconds = None
                if not budgets.is_reached(connection, spec.job_id, down.at_least):
                    for claim in claims:
                        shards.release(
                            connection, self._owner, claim.shard_id, claim.epoch, "released", down.detail
                        )
                    return
            for claim in claims:
                shards.release(connection, self._owner, claim.shard_id, claim.epoch, "parked", down.detail)
            lanes.park(connection, spec.job_id, spec.teacher, down.kind, down.detail, seconds)

    def release(self, claim: shards.Claim, outcome: str, detail: str) -> None:
        with transaction(self._database) as connection:
            shards.release(connection, self._owner, claim.shard_id, claim.epoch, outcome, detail)

    def suspect(self, claim: shards.Claim, prompt_number: int | None) -> None:
        with transaction(self._database) as connection:
            shards.suspect(connection, self._owner, claim.lease, prompt_number)

    def leave(self) -> None:
        with transaction(self._database) as connection:
            workers.leave(connection, self._owner)
