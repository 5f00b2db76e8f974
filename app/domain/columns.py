"""Token columns: the numbers of one completion. From the driver on, logprobs are arrays, never JSON."""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.errors import MalformedAnswer

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

_NO_IDS: Int32 = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """Token-aligned numbers of one completion of T tokens with k candidates a position.

    Row i is the distribution that token i was drawn from, unnormalised over the k kept, at temperature 1
    (`raw_logprobs`), natural logarithm. Candidates are in descending order; missing ones are id −1, logprob −inf.
    A token that was forced rather than sampled has `sampled[i] = False` and NaN in `sampled_logprob`.
    """

    token_ids: Int32  # [T]
    topk_ids: Int32  # [T, k]
    topk_logprobs: Float32  # [T, k]
    sampled_logprob: Float32  # [T]
    sampled_rank: Int32  # [T], 1 = likeliest, 0 = unknown (outside the candidates)
    tail_logmass: Float32  # [T], log(1 − Σ exp(topk)), in float32 before any rounding
    sampled: Bools  # [T]
    prompt_ids: Int32 = field(default_factory=lambda: _NO_IDS)  # [P], empty where the teacher does not tell

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def k(self) -> int:
        return int(self.topk_ids.shape[1])


def token_columns(
    token_ids: Int32,
    candidate_ids: Int32,
    candidate_logprobs: Float32,
    sampled_logprob: Float32,
    k: int,
    prompt_ids: Int32 | None = None,
    rank: Int32 | None = None,
) -> TokenColumns:
    """Columns from what an engine returned: `candidate_*` [T, ≥k] in any order, sampled token included or not.

    Sorts, drops repeats, cuts to k, and computes rank and tail. −9999 (vLLM's −inf over JSON) becomes −inf.
    Raises `MalformedAnswer` for NaN, a positive logprob, or arrays whose lengths disagree.
    """
    t = token_ids.shape[0]
    if (
        candidate_ids.shape != candidate_logprobs.shape
        or candidate_ids.shape[0] != t
        or sampled_logprob.shape != (t,)
    ):
        raise MalformedAnswer(
            f"token columns disagree: {t} tokens, candidates {candidate_ids.shape} and {candidate_logprobs.shape}"
        )
    lp = candidate_logprobs.astype(np.float32, copy=True)
    own = sampled_logprob.astype(np.float32, copy=True)
    for values in (lp, own):
        values[values <= -9999.0] = -np.inf
        if np.isnan(values).any():
            raise MalformedAnswer("the teacher returned NaN as a logprob")
        if (values > 1e-3).any():
            raise MalformedAnswer("the teacher returned a logprob above 0: these are not log-probabilities")
        np.minimum(values, 0.0, out=values)
    ids = candidate_ids.astype(np.int32, copy=True)
    lp[ids < 0] = -np.inf
    ids, lp = _distinct_descending(ids, lp)
    ids, lp = _padded(ids[:, :k], lp[:, :k], k)
    hit = (ids == token_ids[:, None]) & (ids >= 0)
    found = (
        np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0).astype(np.int32) if k else np.zeros(t, np.int32)
    )
    if rank is not None:
        found = np.where(found == 0, rank.astype(np.int32), found).astype(np.int32)
    return TokenColumns(
        token_ids=token_ids.astype(np.int32, copy=False),
        topk_ids=ids,
        topk_logprobs=lp,
        sampled_logprob=own,
        sampled_rank=found,
        tail_logmass=tail_logmass(lp),
        sampled=np.ones(t, dtype=np.bool_),
        prompt_ids=_NO_IDS if prompt_ids is None else prompt_ids.astype(np.int32, copy=False),
    )


def ids_only(token_ids: Int32, prompt_ids: Int32 | None = None) -> TokenColumns:
    """Columns of a teacher that tells token ids but no logprobs: k = 0, logprobs NaN."""
    return TokenColumns(
        token_ids.astype(np.int32, copy=False),
        *_untold(token_ids.shape[0]),
        _NO_IDS if prompt_ids is None else prompt_ids.astype(np.int32, copy=False),
    )


@lru_cache(1024)
def _untold(t: int) -> tuple[Int32, Float32, Float32, Int32, Float32, Bools]:
    """What t tokens without logprobs have in common: `topk_ids` to `sampled`, read-only, shared by all such answers."""
    shared = (
        np.zeros((t, 0), np.int32),
        np.zeros((t, 0), np.float32),
        np.full(t, np.nan, np.float32),
        np.zeros(t, np.int32),
        np.zeros(t, np.float32),
        np.ones(t, np.bool_),
    )
    for column in shared:
        column.flags.writeable = False
    return shared


def forced(token_ids: Int32, k: int) -> TokenColumns:
    """Columns of tokens that were put there, not sampled: no logprob explains them."""
    base = ids_only(token_ids)
    t = token_ids.shape[0]
    return TokenColumns(
        token_ids=base.token_ids,
        topk_ids=np.full((t, k), -1, np.int32),
        topk_logprobs=np.full((t, k), -np.inf, np.float32),
        sampled_logprob=base.sampled_logprob,
        sampled_rank=base.sampled_rank,
        tail_logmass=base.tail_logmass,
        sampled=np.zeros(t, np.bool_),
    )


def concatenated(parts: list[TokenColumns], prompt_ids: Int32 | None = None) -> TokenColumns:
    """One completion out of consecutive pieces of equal k."""
    return TokenColumns(
        token_ids=np.concatenate([p.token_ids for p in parts]),
        topk_ids=np.concatenate([p.topk_ids for p in parts]),
        topk_logprobs=np.concatenate([p.topk_logprobs for p in parts]),
        sampled_logprob=np.concatenate([p.sampled_logprob for p in parts]),
        sampled_rank=np.concatenate([p.sampled_rank for p in parts]),
        tail_logmass=np.concatenate([p.tail_logmass for p in parts]),
        sampled=np.concatenate([p.sampled for p in parts]),
        prompt_ids=parts[0].prompt_ids if prompt_ids is None else prompt_ids,
    )


def first_of(columns: TokenColumns, count: int) -> TokenColumns:
    """The columns of the first `count` tokens."""
    rows = (name for name in TokenColumns.__slots__ if name != "prompt_ids")
    return replace(columns, **{name: getattr(columns, name)[:count] for name in rows})


def widened(columns: TokenColumns, k: int) -> TokenColumns:
    """The same with room for k candidates, of which those beyond its own are absent."""
    ids, logprobs = _padded(columns.topk_ids, columns.topk_logprobs, k)
    return replace(columns, topk_ids=ids, topk_logprobs=logprobs)


def tail_logmass(logprobs: Float32) -> Float32:
    """log(1 − Σ exp(logprobs)) per row of [T, k]; −inf where the candidates carry all mass. float32 [T]."""
    mass = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    rest = np.clip(1.0 - mass, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        found: Float32 = np.log(rest).astype(np.float32)
    return found


def _distinct_descending(ids: Int32, lp: Float32) -> tuple[Int32, Float32]:
    if ids.shape[1] == 0:
        return ids, lp
    order = np.argsort(-lp, axis=1, kind="stable")
    ids, lp = np.take_along_axis(ids, order, axis=1), np.take_along_axis(lp, order, axis=1)
    by_id = np.argsort(ids, axis=1, kind="stable")
    in_id_order = np.take_along_axis(ids, by_id, axis=1)
    repeat = np.zeros(ids.shape, dtype=np.bool_)
    repeat[:, 1:] = in_id_order[:, 1:] == in_id_order[:, :-1]
    if not repeat.any():
        return ids, lp
    again = np.zeros(ids.shape, dtype=np.bool_)
    np.put_along_axis(again, by_id, repeat, axis=1)
    ids[again], lp[again] = -1, -np.inf
    order = np.argsort(-lp, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(lp, order, axis=1)


def _padded(ids: Int32, lp: Float32, k: int) -> tuple[Int32, Float32]:
    missing = k - ids.shape[1]
    if missing > 0:
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
        lp = np.pad(lp, ((0, 0), (0, missing)), constant_values=-np.inf)
    ids = np.ascontiguousarray(ids)
    ids[np.isneginf(lp)] = -1
    return ids, np.ascontiguousarray(lp)
