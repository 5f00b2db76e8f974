"""Calls that are aborted give back what they were counted for, also those that had no time to begin."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.services.generate.holdings import Holdings

RUN: Any = SimpleNamespace(key=("job_1", 0), lost=False, forget=lambda: None)
LANE: Any = SimpleNamespace(key=("job_1", 0), runs=[RUN])


class Call:
    """What stands for a unit."""

    run = RUN


@pytest.mark.parametrize(
    "aborted",
    [lambda held: held.drop(RUN), lambda held: held.abort(LANE), lambda held: held.abort_all()],
)
def test_a_call_that_had_not_begun_is_counted_out(aborted: Callable[[Holdings], None]) -> None:
    asyncio.run(_aborted_at_once(aborted))


async def _aborted_at_once(aborted: Callable[[Holdings], None]) -> None:
    held = Holdings()

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            held.in_flight -= 1

    begun = asyncio.create_task(call())
    await asyncio.sleep(0)
    fresh = asyncio.create_task(call())
    units: Any = {Call(): begun, Call(): fresh}
    held.calls, held.in_flight = units, 2
    aborted(held)  # in the same turn of the loop that made the second call
    done, _ = await asyncio.wait([begun, fresh], timeout=5)
    assert [task.cancelled() for task in done] == [True, True]
    assert held.in_flight == 0
