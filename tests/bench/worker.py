"""A worker that can be made slow on purpose: `python -m tests.bench.worker …` with the arguments of celery.

`RETORT_BENCH_FLUSH_SLEEP`: seconds that each checkpoint takes longer. Zero: a worker as every other.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any


def _slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wrapped(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return function(*given, **named)

    return wrapped


if __name__ == "__main__":
    delay = float(os.environ.pop("RETORT_BENCH_FLUSH_SLEEP", "0"))
    if delay:
        from app.services.generate import recording

        recording.checkpoint = _slowed(recording.checkpoint, delay)
    from celery.__main__ import main

    sys.argv[0] = "celery"
    main()
