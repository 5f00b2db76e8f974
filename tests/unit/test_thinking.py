"""Traces that a budget ended, in columns."""

import numpy as np
import pytest

from app.domain.columns import TokenColumns, token_columns
from app.teachers.thinking import with_forced_end

START, END = [7, 8], [9, 3]


def columns(ids: list[int]) -> TokenColumns:
    own = np.full(len(ids), -1.0, np.float32)
    given = np.array(ids, np.int32)
    return token_columns(given, given[:, None], own[:, None], own, 1)


@pytest.mark.parametrize(
    ("ids", "start", "budget", "forced"),
    [
        ([1] * 10 + END + [2, 2], [], 10, [10, 11]),
        ([1] * 10 + END + [2, 2], [], 20, []),
        (START + [1] * 10 + END + [2], START, 10, [12, 13]),
        ([1] * 10 + END, START, 10, []),  # the trace was never opened
        ([9] + [1] * 9 + END, [], 10, [10, 11]),  # an end that is half there
        ([1] * 10 + [9], [], 10, []),  # cut off in the middle of it
        (END + [1] * 20 + END, [], 10, []),  # only the first end is the trace's
        ([], [], 10, []),
    ],
)
def test_the_end_of_a_used_up_trace_is_not_sampled(
    ids: list[int], start: list[int], budget: int, forced: list[int]
) -> None:
    given = columns(ids)
    found = with_forced_end(given, budget, start, END)
    assert np.flatnonzero(~found.sampled).tolist() == forced
    assert np.isnan(found.sampled_logprob[forced]).all()
    assert (found.sampled_rank[forced] == 0).all()
    assert found.topk_logprobs.tolist() == given.topk_logprobs.tolist()  # still what the model said
    assert (found is given) == (not forced)
