"""A worker that dies at a chosen instruction, or whose clock is wrong: `python -m tests.faults.worker …`.

`RETORT_TEST_CRASH` names the instruction, `RETORT_TEST_CRASH_MARK` a file that is made when it was hit, so that a
worker started again lives on. `RETORT_TEST_CLOCK` is added to this process's clock, in seconds.
"""

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _die() -> None:
    mark = Path(os.environ["RETORT_TEST_CRASH_MARK"])
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _after(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*given: Any, **named: Any) -> Any:
        result = function(*given, **named)
        _die()
        return result

    return wrapped


def _die_in_a_commit() -> None:
    """While some later commit is under way: a timer goes off in the middle of it, give or take a millisecond."""
    from sqlalchemy import Engine, event

    left = random.randint(5, 15)

    def begins(connection: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            threading.Timer(random.uniform(0, 0.002), _die).start()

    event.listen(Engine, "commit", begins)


def _arrange() -> None:
    from app.db import checkpoints, shards
    from app.services.generate import calls, recording, sending
    from app.storage.segments import write_segment

    match os.environ.get("RETORT_TEST_CRASH"):
        case "file-written":  # the segment's file is synced, its pointer is not committed
            setattr(recording, "write_segment", _after(write_segment))  # noqa: B010
        case "rows-inserted":  # within the checkpoint's transaction
            checkpoints.record = _after(checkpoints.record)
        case "checkpoint-committed":  # after the commit, before the loop hears of it
            recording.checkpoint = _after(recording.checkpoint)
        case "shard-ended":  # within the transaction that ends the shard
            shards.finish = _after(shards.finish)
        case "shard-claimed":  # after the claim was committed, before a prompt was read
            checkpoints.prompts_of = _after(checkpoints.prompts_of)
        case "commit":
            _die_in_a_commit()
        case "poison":  # one prompt, each time that it is asked

            async def asked(unit: Any, *given: Any) -> Any:
                if unit.prompt_number == 5:
                    await asyncio.sleep(0.3)  # the others are answered meanwhile
                    os.kill(os.getpid(), signal.SIGKILL)
                return await calls.ask(unit, *given)

            setattr(sending, "ask", asked)  # noqa: B010
    offset = float(os.environ.get("RETORT_TEST_CLOCK", "0"))
    if offset:
        true_time = time.time
        time.time = lambda: true_time() + offset


if __name__ == "__main__":
    _arrange()
    from celery.__main__ import main

    sys.argv[0] = "celery"
    main()
