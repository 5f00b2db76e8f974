"""Throughput and time left, out of a job's recent steps. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.clock import PACE_SECONDS

WINDOW_STEPS = 24  # two minutes
_Z = 1.96  # 95 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Pace:
    """Means over `window_seconds`. `eta_*` are seconds from now: the estimate and its 95 % interval.

    `None` where nothing can be said: no row yet, or (for `eta_high_seconds`) a spread that allows standstill.
    """

    window_seconds: int
    rows_per_second: float
    tokens_per_second: float
    eta_seconds: float | None
    eta_low_seconds: float | None
    eta_high_seconds: float | None


def pace(rows: Sequence[int], tokens: Sequence[int], remaining: int) -> Pace | None:
    """From whole steps of `PACE_SECONDS` (idle ones as 0), oldest first, and the rows still to come.

    The interval is remaining / (mean ± 1.96 standard errors of the steps' rates); batches of checkpoints make
    neighbouring steps anticorrelated, so it errs on the wide side. None without a step.
    """
    steps = len(rows)
    if steps == 0:
        return None
    mean = sum(rows) / steps
    rate = mean / PACE_SECONDS
    per_second = round(sum(tokens) / (steps * PACE_SECONDS), 3)
    if mean == 0:
        return Pace(steps * PACE_SECONDS, 0.0, per_second, None, None, None)
    if steps > 1:
        variance = sum((count - mean) ** 2 for count in rows) / (steps - 1)
        error = _Z * math.sqrt(variance / steps) / PACE_SECONDS
    else:
        error = _Z * math.sqrt(mean) / PACE_SECONDS  # one step says nothing of its spread: take Poisson's
    slowest = rate - error
    return Pace(
        window_seconds=steps * PACE_SECONDS,
        rows_per_second=round(rate, 3),
        tokens_per_second=per_second,
        eta_seconds=round(remaining / rate, 1),
        eta_low_seconds=round(remaining / (rate + error), 1),
        eta_high_seconds=round(remaining / slowest, 1) if slowest > 0 else None,
    )
