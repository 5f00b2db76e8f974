"""Grants of a limit per minute, under every order of asking, spending and correcting that hypothesis finds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.rates import (
    NO_AMOUNTS,
    PACE_SECONDS,
    SPEND_SECONDS,
    STEPS,
    WINDOW_SECONDS,
    Amounts,
    Limits,
    grant,
)

asks = st.tuples(
    st.floats(0, 20),  # seconds since the last one
    st.integers(1, 40),  # calls that are wanted
    st.integers(1, 50),  # input tokens of a call
    st.integers(1, 80),  # output tokens of it
    st.floats(0, 1),  # part of its output that it really makes
    st.floats(0, SPEND_SECONDS),  # until it is spent
)
limits = st.builds(
    Limits,
    st.none() | st.integers(1, 300),
    st.none() | st.integers(50, 5000),
    st.none() | st.integers(80, 5000),
    st.none() | st.integers(130, 8000),
)


@settings(max_examples=40)
@given(limits, st.lists(asks, max_size=40))
def test_no_minute_sees_more_than_its_limit(limits: Limits, asked: list[tuple[float, ...]]) -> None:
    steps: dict[int, Amounts] = {}
    sent: list[tuple[float, Amounts]] = []  # what the teacher counts, and when
    now = 0.0
    for wait, calls, one_in, one_out, share, spend in asked:
        now += wait
        step = int(now)
        used = sum((a for at, a in steps.items() if at > step - STEPS), NO_AMOUNTS)
        recent = sum((a for at, a in steps.items() if at > step - PACE_SECONDS), NO_AMOUNTS)
        one = Amounts(1, int(one_in), int(one_out))
        given = grant(limits, used, recent, one.scaled(int(calls)), one)
        while given.covers(one):
            given -= one
            really = Amounts(1, one.input_tokens, int(one.output_tokens * share))
            steps[step] = steps.get(step, NO_AMOUNTS) + really  # corrected, or given back
            sent.append((now + spend, really))
    for end, _ in sent:
        seen = sum((a for at, a in sent if end - WINDOW_SECONDS < at <= end), NO_AMOUNTS)
        counted = (*seen.parts(), seen.input_tokens + seen.output_tokens)
        for limit, amount in zip(limits.parts(), counted, strict=True):
            assert limit is None or amount <= limit, f"{amount} in a minute of {limit}"


@pytest.mark.parametrize(("per_minute", "workers"), [(1, 1), (24, 2), (60, 1), (300, 3)])
def test_a_limit_is_used_up(per_minute: int, workers: int) -> None:
    """With enough to do, two minutes see about twice the limit, whoever asks; whole calls leave a part unused."""
    steps: dict[int, int] = {}
    made = 0
    for tick in range(2 * 120 * workers):
        step = tick // (2 * workers)
        used = sum(count for at, count in steps.items() if at > step - STEPS)
        recent = sum(count for at, count in steps.items() if at > step - PACE_SECONDS)
        given = grant(
            Limits(requests=per_minute), Amounts(used), Amounts(recent), Amounts(5), Amounts(1)
        ).requests
        steps[step] = steps.get(step, 0) + given
        made += given
    assert made >= 2 * per_minute * 0.8 - 1
