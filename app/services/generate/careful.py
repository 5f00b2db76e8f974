"""A shard over which workers died is asked prompt by prompt, so that the one at fault is found and no other fails."""

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from app.db.shards import Claim
from app.services.generate.calls import Outcome
from app.services.generate.endings import until
from app.services.generate.ledger import Ledger
from app.services.generate.threads import Threads
from app.services.generate.work import ShardRun

log = logging.getLogger(__name__)

DEATHS = 3  # of workers, without a row recorded between: one may be chance, or a restart of the machine


def needs_care(claim: Claim) -> bool:
    return claim.suspect is not None or claim.claims_without_progress > DEATHS


def guilty(run: ShardRun) -> list[Outcome]:
    """Takes the suspect's samples out of the run, as failed rows, if workers died over it alone often enough."""
    claim = run.claim
    if claim.suspect is None or claim.claims_without_progress <= DEATHS:
        return []
    died = claim.claims_without_progress - 1
    detail = f"{died} workers died, one after the other, while this was the only prompt of its shard that they asked"
    failed = [
        Outcome(unit, index, died, 0, None, "worker-died", detail)
        for unit in run.pending
        if unit.prompt_number == claim.suspect
        for index in unit.sample_indices
    ]
    run.pending = deque(unit for unit in run.pending if unit.prompt_number != claim.suspect)
    return failed


async def one_by_one(run: ShardRun, threads: Threads, ledger: Ledger, pump: Callable[[], None]) -> None:
    """Name each prompt in the database, then let it be sent, and wait until it is recorded."""
    claim = run.claim
    log.warning("workers died over shard %d: its prompts are asked one by one", claim.shard_id)
    while run.kept_back and not run.lost and not threads.leaving:
        number, left = run.kept_back[0].prompt_number, run.n_missing
        await threads.persist(partial(ledger.suspect, claim, number))
        while run.kept_back and run.kept_back[0].prompt_number == number:
            unit = run.kept_back.popleft()
            left -= len(unit.sample_indices)
            run.pending.append(unit)
        pump()
        await until(partial(_recorded, run, threads, left))


def _recorded(run: ShardRun, threads: Threads, left: int) -> bool:
    return run.n_missing <= left or run.lost or threads.leaving
