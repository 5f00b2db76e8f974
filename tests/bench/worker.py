"""A worker that can be made slow on purpose: `python -m tests.bench.worker …` with the arguments of celery.

`RETORT_BENCH_FLUSH_SLEEP`: seconds that each checkpoint takes longer. Zero: a worker as every other.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _NoPandas(MetaPathFinder):
    """pyarrow imports pandas where it is installed: in the environment of the tests, not in that of a worker."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)
        return None


def _slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wrapped(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return function(*given, **named)

    return wrapped


if __name__ == "__main__":
    sys.meta_path.insert(0, _NoPandas())
    delay = float(os.environ.pop("RETORT_BENCH_FLUSH_SLEEP", "0"))
    if delay:
        from app.services.generate import recording

        recording.checkpoint = _slowed(recording.checkpoint, delay)
    from celery.__main__ import main

    sys.argv[0] = "celery"
    main()
