"""Traces that a budget ended: the server puts the closing tokens there, whatever the model would have said."""

from dataclasses import replace

import numpy as np

from app.domain.columns import Int32, TokenColumns

_SLACK = 4  # vLLM counts tokens of the prompt that stand after the opening tag, too


def with_forced_end(columns: TokenColumns, budget: int, start: list[int], end: list[int]) -> TokenColumns:
    """The columns, the end of a trace that used up its budget marked as not sampled; else the very same object.

    `start`: ids that open the trace; empty where the prompt has opened it. `end`: ids that close it. A trace that
    ends by itself within `_SLACK` tokens of its budget cannot be told from a forced end, and is marked as well.
    """
    opened = _first(columns.token_ids, start, 0) if start else 0
    if opened is None or not end:
        return columns
    begin = opened + len(start)
    closed = _first(columns.token_ids, end, begin)
    if closed is None or closed - begin < budget - _SLACK:
        return columns
    forced = np.zeros(len(columns), np.bool_)
    forced[closed : closed + len(end)] = True
    return replace(
        columns,
        sampled=columns.sampled & ~forced,
        sampled_logprob=np.where(forced, np.float32("nan"), columns.sampled_logprob),
        sampled_rank=np.where(forced, np.int32(0), columns.sampled_rank),
    )


def _first(ids: Int32, wanted: list[int], after: int) -> int | None:
    """Where `wanted` stands first, at or after a position."""
    width = len(wanted)
    for at in np.flatnonzero(ids[after : len(ids) - width + 1] == wanted[0]) + after:
        if ids[at : at + width].tolist() == wanted:
            return int(at)
    return None
