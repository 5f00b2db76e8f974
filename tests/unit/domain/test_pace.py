"""Throughput and time left, as arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.clock import PACE_SECONDS
from app.domain.pace import pace


def test_a_steady_pace_has_no_spread() -> None:
    found = pace([10] * 12, [100] * 12, remaining=240)
    assert found is not None
    assert found.window_seconds == 12 * PACE_SECONDS
    assert found.rows_per_second == 10 / PACE_SECONDS
    assert found.tokens_per_second == 100 / PACE_SECONDS
    assert found.eta_seconds == found.eta_low_seconds == found.eta_high_seconds == 240 / (10 / PACE_SECONDS)


def test_standstill_and_nothing() -> None:
    assert pace([], [], 5) is None
    found = pace([0, 0, 0], [0, 0, 0], 5)
    assert found is not None
    assert (found.rows_per_second, found.eta_seconds, found.eta_high_seconds) == (0, None, None)


def test_one_step_is_uncertain() -> None:
    found = pace([100], [0], 1000)
    assert found is not None
    assert found.eta_low_seconds == pytest.approx(1000 / (119.6 / PACE_SECONDS), rel=0.01)
    assert found.eta_high_seconds == pytest.approx(1000 / (80.4 / PACE_SECONDS), rel=0.01)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=24), st.integers(0, 10**9))
def test_the_interval_holds_the_estimate(rows: list[int], remaining: int) -> None:
    found = pace(rows, rows, remaining)
    assert found is not None
    if found.eta_seconds is not None:
        assert found.eta_low_seconds is not None
        assert found.eta_low_seconds <= found.eta_seconds
        assert found.eta_high_seconds is None or found.eta_seconds <= found.eta_high_seconds
