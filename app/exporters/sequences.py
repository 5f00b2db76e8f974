"""Prompt and completion as one sequence of token ids, with candidates where a trainer looks for them.

Three alignments are in use, and mixing them fails in silence. A sequence has P prompt tokens and T completion tokens,
N = P + T; the distribution that completion token j was drawn from stands in

    L (logits-aligned)    row P + j − 1 of N: where a causal model predicts token P + j
    T (token-aligned)     row P + j of N: beside the token itself
    R (response-aligned)  row j of T
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.exporters import lists
from app.exporters.base import Binding, Counted, Unfit

IGNORED: Final = -100
"""The label of a token that no loss is taken of (PyTorch's `ignore_index`)."""

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

_CELLS = 4_000_000


@dataclass(frozen=True, slots=False)
class Sequences:
    """R rows of a batch, flat: S tokens in all, T of them completions' tokens, k candidates for each of these.

    `rows`: the places of the rows in the batch. `topk_ids` is −1 and `topk_logprobs` −inf where there is no candidate;
    a token that was put there, not drawn, has none at all and `drawn` False.
    """

    rows: Int64  # [R]
    n_prompt: Int64  # [R]
    n_token: Int64  # [R]
    prompt_ids: Int32  # [S − T]
    token_ids: Int32  # [T]
    drawn: Bools  # [T]
    topk_ids: Int32  # [T, k]
    topk_logprobs: Float32  # [T, k]
    sampled_logprob: Float32  # [T]

    @cached_property
    def lengths(self) -> Int64:
        """Tokens of each sequence. [R]"""
        return self.n_prompt + self.n_token

    @cached_property
    def input_ids(self) -> Int32:
        """Each row's prompt and then its completion. [S]"""
        joined: Int32 = lists.joined(self.prompt_ids, self.n_prompt, self.token_ids, self.n_token)
        return joined

    @cached_property
    def places(self) -> Int64:
        """Where each completion token stands in `input_ids`. [T]"""
        return lists.positions(lists.offsets_of(self.lengths)[:-1] + self.n_prompt, self.n_token)

    def labels(self) -> Int32:
        """The tokens that were drawn; `IGNORED` for the prompt and for what was put there. [S]"""
        made = np.full(int(self.lengths.sum()), IGNORED, np.int32)
        made[self.places[self.drawn]] = self.token_ids[self.drawn]
        return made

    def spread(self, values: NDArray[Any], fill: Any, ahead: int) -> NDArray[Any]:
        """Completion rows [T, …] laid into sequences [S, …]: `ahead` 1 for L, 0 for T; `fill` elsewhere."""
        made = np.full((int(self.lengths.sum()), *values.shape[1:]), fill, values.dtype)
        made[self.places - ahead] = values
        return made


def cut(batch: pa.RecordBatch, k: int, cells: int = _CELLS) -> Iterator[pa.RecordBatch]:
    """Slices of a batch whose laid-out candidates stay in the tens of MiB; at least one row each."""
    if batch.num_rows == 0:
        yield batch
        return
    taken = (lists.lengths(batch.column("prompt_ids")) + lists.lengths(batch.column("token_ids"))) * max(1, k)
    ends = np.cumsum(taken)
    start = 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + cells, side="right")))
        yield batch.slice(start, end - start)
        start = end


def sequences(batch: pa.RecordBatch, k: int, counted: Counted) -> Sequences:
    """The rows that have ids of prompt and completion and at least k candidates; others are counted as dropped."""
    prompt, token = batch.column("prompt_ids"), batch.column("token_ids")
    n_prompt, n_token = lists.lengths(prompt), lists.lengths(token)
    stored = batch.column("lp_k").fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    has_tokens = lists.validity(token) & (n_token > 0)
    has_prompt = n_prompt > 0
    has_candidates = stored >= k
    counted.drop("no token ids", int((~has_tokens).sum()))
    counted.drop("no token ids of the prompt", int((has_tokens & ~has_prompt).sum()))
    counted.drop(f"fewer than {k} candidates stored", int((has_tokens & has_prompt & ~has_candidates).sum()))
    keep = has_tokens & has_prompt & has_candidates
    rows = np.flatnonzero(keep)
    kept_tokens = np.repeat(keep, n_token)
    at = np.flatnonzero(kept_tokens)
    candidates = _candidate_places(n_token, stored, keep, k)
    return Sequences(
        rows=rows,
        n_prompt=n_prompt[keep],
        n_token=n_token[keep],
        prompt_ids=lists.flat(prompt)[np.repeat(keep, n_prompt)],
        token_ids=lists.flat(token)[at],
        drawn=lists.flat(batch.column("sampled"))[at].astype(np.bool_),
        topk_ids=lists.flat(batch.column("topk_ids"))[candidates].reshape(len(at), k),
        topk_logprobs=lists.flat(batch.column("topk_logprobs"))[candidates].reshape(len(at), k),
        sampled_logprob=lists.flat(batch.column("sampled_logprob"))[at],
    )


def _candidate_places(n_token: Int64, stored: Int64, keep: Bools, k: int) -> Int64:
    """Where the first k candidates of each kept token lie among all that are stored, flat."""
    starts = lists.offsets_of(n_token * stored)[:-1]
    per_token = np.repeat(stored[keep], n_token[keep])
    within = lists.positions(np.zeros(int(keep.sum()), np.int64), n_token[keep])
    first = np.repeat(starts[keep], n_token[keep]) + within * per_token
    return (first[:, None] + np.arange(k)).reshape(-1)


def renormalised(logprobs: Float32) -> Float32:
    """log-probabilities of [T, k] made to sum to 1 over the candidates that are there; −inf stays. float32."""
    peak = logprobs.max(axis=1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    mass = np.exp(logprobs.astype(np.float64) - peak).sum(axis=1, keepdims=True)
    total = np.log(np.where(mass > 0, mass, 1.0)) + peak  # a row without any candidate stays as it is
    made: Float32 = (logprobs - total).astype(np.float32)
    return made


def nested(values: NDArray[Any], counts: Int64, kind: pa.DataType) -> pa.Array:
    """[S, k] as one list of `counts[i]` lists of k for each row; `kind` is a list of lists."""
    rows, k = values.shape
    inner = pa.ListArray.from_arrays(
        pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(k)),
        pa.array(values.reshape(-1)).cast(kind.value_type.value_type),
        type=kind.value_type,
    )
    return pa.ListArray.from_arrays(pa.array(lists.offsets_of(counts).astype(np.int32)), inner, type=kind)


def check_ids(bindings: Sequence[Binding], format_: str) -> None:
    """Raises `Unfit` unless every teacher gives token ids, and all of one vocabulary."""
    for binding in bindings:
        if not binding.token_ids:
            raise Unfit(
                f"{format_} needs token ids, and teacher {binding.teacher!r} of job {binding.job} gives none: "
                "select other teachers, or take a text format"
            )
    hashes = {binding.tokenizer_sha256 for binding in bindings}
    sizes = {binding.vocab_size for binding in bindings if binding.vocab_size is not None}
    models = {(binding.model, binding.revision) for binding in bindings}
    if len(hashes - {None}) > 1 or len(sizes) > 1 or (None in hashes and len(models) > 1):
        told = "; ".join(
            f"{b.teacher!r}: tokenizer {(b.tokenizer_sha256 or 'not told')[:16]}, vocabulary {b.vocab_size}"
            for b in bindings
        )
        raise Unfit(
            f"{format_} holds token ids of one vocabulary, and these teachers are not known to share one ({told}): "
            "export each by itself, or take a text format"
        )


def check_signal(bindings: Sequence[Binding], k: int | None, format_: str) -> int:
    """How many candidates per position can be written: `k`, or all that every row has. Raises `Unfit`."""
    check_ids(bindings, format_)
    for binding in bindings:
        if binding.logprobs_mode != "raw_logprobs" or binding.logprobs_temperature != 1.0:
            raise Unfit(
                f"{format_} wants logprobs at temperature 1 and teacher {binding.teacher!r} of job {binding.job} gave "
                f"{binding.logprobs_mode} at {binding.logprobs_temperature:g}: a top-k cannot be re-tempered exactly"
            )
        if binding.top_logprobs < max(1, k or 1):
            stored = f"{binding.top_logprobs} candidates" if binding.top_logprobs else "no logprobs"
            wanted = f"{k} were asked for" if k else "at least one is needed"
            raise Unfit(
                f"{format_}: job {binding.job} keeps {stored} per position of teacher {binding.teacher!r}, "
                f"and {wanted}"
            )
    return k or min((binding.top_logprobs for binding in bindings), default=1)
