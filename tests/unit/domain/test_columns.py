"""Token columns: what an engine returns, sorted, cut, completed, or refused."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.columns import TokenColumns, concatenated, forced, ids_only, tail_logmass, token_columns
from app.errors import MalformedAnswer

IDS = np.array([7, 8], np.int32)


def ids(*rows: list[int]) -> Any:
    return np.array(rows, np.int32)


def lps(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


def columns(candidates: Any, logprobs: Any, own: list[float], k: int, **more: Any) -> TokenColumns:
    return token_columns(IDS, candidates, logprobs, np.array(own, np.float32), k, **more)


def test_candidates_are_sorted_cut_and_ranked() -> None:
    made = columns(ids([1, 7, 3], [8, 2, 1]), lps([-3, -1, -0.5], [-4, -0.1, -2]), [-1, -4], 2)
    assert made.topk_ids.tolist() == [[3, 7], [2, 1]]
    assert made.topk_logprobs.tolist() == [[-0.5, -1], [pytest.approx(-0.1), -2]]
    assert made.sampled_rank.tolist() == [2, 0], "the second token is outside the two that were kept"
    assert (len(made), made.k) == (2, 2)
    assert made.sampled.all()


def test_missing_candidates_are_minus_one_and_minus_infinity() -> None:
    made = columns(ids([7, -1], [8, 5]), lps([-0.5, -9999], [-1, -np.inf]), [-0.5, -1], 3)
    assert made.topk_ids.tolist() == [[7, -1, -1], [8, -1, -1]]
    assert np.isneginf(made.topk_logprobs[:, 1:]).all()


def test_a_candidate_that_stands_twice_is_kept_once() -> None:
    """vLLM's lists begin with the sampled token, and it may stand among the candidates again."""
    made = columns(ids([7, 1, 7], [8, 8, 2]), lps([-1, -2, -1], [-3, -3, -0.2]), [-1, -3], 3)
    assert made.topk_ids.tolist() == [[7, 1, -1], [2, 8, -1]]
    assert made.sampled_rank.tolist() == [1, 2]


def test_a_rank_that_the_engine_tells_is_taken_where_ours_is_unknown() -> None:
    told = np.array([5, 9], np.int32)
    made = columns(ids([7, 1], [1, 2]), lps([-1, -2], [-1, -2]), [-1, -6], 2, rank=told)
    assert made.sampled_rank.tolist() == [1, 9]


@pytest.mark.parametrize(
    ("logprobs", "own", "told"),
    [
        ([[math.nan, -1], [-1, -2]], [-1, -1], "NaN"),
        ([[-1, -2], [-1, -2]], [math.nan, -1], "NaN"),
        ([[0.5, -1], [-1, -2]], [-1, -1], "above 0"),
        ([[-1, -2], [-1, -2]], [0.01, -1], "above 0"),
    ],
)
def test_what_is_no_logprob_is_refused(logprobs: list[list[float]], own: list[float], told: str) -> None:
    with pytest.raises(MalformedAnswer, match=told):
        columns(ids([7, 1], [8, 1]), lps(*logprobs), own, 2)


@pytest.mark.parametrize("shape", [(1, 2), (3, 2)])
def test_lengths_that_disagree_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(MalformedAnswer, match="disagree"):
        columns(np.zeros(shape, np.int32), np.zeros(shape, np.float32), [-1, -1], 2)
    with pytest.raises(MalformedAnswer, match="disagree"):
        columns(ids([7, 1], [8, 1]), lps([-1, -1], [-1, -1]), [-1, -1, -1], 2)


def test_a_hair_above_zero_is_rounding() -> None:
    made = columns(ids([7], [8]), lps([1e-5], [0.0]), [1e-5, 0.0], 1)
    assert made.topk_logprobs.max() == made.sampled_logprob.max() == 0.0
    assert np.isneginf(made.tail_logmass).all(), "nothing is left for the others"


def test_what_was_given_is_not_changed() -> None:
    given_lps, given_ids = lps([-9999, -1], [-1, -2]), ids([1, 7], [8, 1])
    columns(given_ids, given_lps, [-1, -1], 2)
    assert given_lps.tolist() == [[-9999, -1], [-1, -2]]
    assert given_ids.tolist() == [[1, 7], [8, 1]]


def test_no_candidates_at_all() -> None:
    made = columns(np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32), [-1, -2], 0)
    assert (made.k, made.sampled_rank.tolist()) == (0, [0, 0])
    assert made.tail_logmass.tolist() == [0.0, 0.0], "all mass is outside of none"


def test_ids_without_logprobs_and_forced_tokens() -> None:
    bare, put = ids_only(IDS, np.array([1], np.int32)), forced(IDS, 3)
    assert np.isnan(bare.sampled_logprob).all()
    assert (bare.k, bare.prompt_ids.tolist(), put.k) == (0, [1], 3)
    assert bare.sampled.all()
    assert not put.sampled.any()
    assert np.isnan(put.sampled_logprob).all()
    assert (put.topk_ids == -1).all()


def test_pieces_are_put_together() -> None:
    piece = columns(ids([7, 1, 3], [8, 2, 1]), lps([-1, -3, -5], [-4, -6, -7]), [-1, -4], 3)
    whole = concatenated([forced(IDS, 3), piece], np.array([4, 5], np.int32))
    assert whole.token_ids.tolist() == [7, 8, 7, 8]
    assert whole.sampled.tolist() == [False, False, True, True]
    assert whole.topk_ids.shape == (4, 3)
    assert whole.prompt_ids.tolist() == [4, 5]


@st.composite
def answers(draw: st.DrawFn) -> tuple[Any, Any, Any, Any, int]:
    """(tokens, candidates, logprobs, own logprobs, k): distributions with repeats and gaps, in any order."""
    t, width, k = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(0, 8))
    candidates, logprobs, tokens, own = [], [], [], []
    for _ in range(t):
        distinct = draw(st.lists(st.integers(0, 30), min_size=width, max_size=width, unique=True))
        weights = np.array(
            draw(st.lists(st.integers(1, 1000), min_size=width + 1, max_size=width + 1)), float
        )
        row = np.log(weights[:width] / weights.sum())
        drawn = draw(st.integers(0, width - 1))
        tokens.append(distinct[drawn])
        own.append(row[drawn])
        again = draw(st.booleans())  # the sampled token stands before the candidates, as vLLM sends it
        order = draw(st.permutations(range(width)))
        candidates.append([distinct[i] for i in order] + [distinct[drawn] if again else -1])
        logprobs.append([row[i] for i in order] + [row[drawn] if again else -9999.0])
    return (
        np.array(tokens, np.int32),
        np.array(candidates, np.int32),
        np.array(logprobs, np.float32),
        np.array(own, np.float32),
        k,
    )


@settings(max_examples=150, deadline=None)
@given(answers())
def test_whatever_comes_the_columns_hold(answer: tuple[Any, Any, Any, Any, int]) -> None:
    tokens, candidates, logprobs, own, k = answer
    made = token_columns(tokens, candidates, logprobs, own, k)
    assert made.topk_ids.shape == made.topk_logprobs.shape == (len(tokens), k)
    for i in range(len(tokens)):
        row, row_ids = made.topk_logprobs[i], made.topk_ids[i]
        kept = row_ids[row_ids >= 0].tolist()
        assert len(set(kept)) == len(kept) == min(k, len(set(candidates[i][candidates[i] >= 0].tolist())))
        assert all(a >= b for a, b in pairwise(row))
        assert ((row_ids == -1) == np.isneginf(row)).all()
        best = sorted(
            ((lp, c) for c, lp in zip(candidates[i], logprobs[i], strict=True) if c >= 0), reverse=True
        )
        if kept:
            assert row[0] == best[0][0]
        rank = int(made.sampled_rank[i])
        if rank:
            assert row_ids[rank - 1] == tokens[i]
            assert row[rank - 1] == own[i]
        else:
            assert tokens[i] not in kept
        outside = 1.0 - np.exp(row.astype(float)).sum()
        assert math.exp(made.tail_logmass[i]) == pytest.approx(max(outside, 0.0), abs=1e-6)


def test_the_tail_is_what_the_candidates_leave() -> None:
    rows = np.log(np.array([[0.5, 0.25], [1.0, 1e-30], [0.9, 0.1]]))
    found = tail_logmass(rows.astype(np.float32))
    assert found[0] == pytest.approx(math.log(0.25), rel=1e-5)
    assert np.isneginf(found[1])
    assert found[2] < math.log(1e-6)
