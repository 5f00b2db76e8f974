"""Rows of logprobs, as OpenAI's chat completions and their many relatives shape them, to token columns.

A row is `{"token", "logprob", "top_logprobs": [{"token", "logprob"}, …]}`. Where the ids are differs:
llama.cpp has `id` in each entry, Fireworks `token_id`, vLLM and its relatives spell `"token": "token_id:123"` when they
are asked to, SGLang has them in `meta_info`, and OpenAI has token text only. Ids are never guessed: text only means
no columns.
"""

import base64
import binascii
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import numpy as np

from app.domain.columns import Int32, TokenColumns, token_columns
from app.errors import MalformedAnswer

_PREFIX = "token_id:"
_AFTER = len(_PREFIX)
_BY_ID = methodcaller("startswith", _PREFIX)


def columns_of_rows(
    rows: list[dict[str, Any]], token_ids: list[int] | None, k: int, prompt_ids: Int32 | None = None
) -> TokenColumns | None:
    """Columns of `rows`, one per token; None where they hold token text only.

    `token_ids`: the sampled ids, where the answer tells them apart from the rows. Raises `MalformedAnswer`.
    """
    try:
        read = _reader(rows)
        if read is None:
            return None if rows else token_columns(*_empty(k), k=k, prompt_ids=prompt_ids)
        ids = np.array([read(row) for row in rows] if token_ids is None else token_ids, dtype=np.int32)
        if len(ids) != len(rows):
            raise MalformedAnswer(f"the answer has {len(ids)} token ids and {len(rows)} rows of logprobs")
        tops = [row["top_logprobs"] for row in rows]
        candidates, logprobs = _rectangle(tops, read)
        own = np.array([row["logprob"] for row in rows], dtype=np.float32)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise MalformedAnswer(f"the answer's logprobs are not in a known shape: {error!r}") from error
    return token_columns(ids, candidates, logprobs, own, k, prompt_ids)


def columns_of_maps(
    token_ids: list[int], tops: Any, own: Any, k: int, prompt_ids: Int32 | None = None
) -> TokenColumns:
    """Columns of vLLM's completions: one `{"token_id:123": logprob, …}` per token, k + 1 entries or k.

    Raises `MalformedAnswer`.
    """
    try:
        if not len(tops) == len(own) == len(token_ids):
            raise MalformedAnswer(
                f"the answer has {len(token_ids)} token ids, {len(own)} logprobs and {len(tops)} rows of candidates"
            )
        if not token_ids:
            return token_columns(*_empty(k), k=k, prompt_ids=prompt_ids)
        names = [name for top in tops for name in top]
        if not all(map(_BY_ID, names)):
            raise MalformedAnswer("the answer names tokens by their text, which does not tell them apart")
        filled = np.arange(k + 1) < np.array([len(top) for top in tops])[:, None]
        ids = np.full(filled.shape, -1, np.int32)
        logprobs = np.full(filled.shape, -np.inf, np.float32)
        ids[filled] = [int(name[_AFTER:]) for name in names]
        logprobs[filled] = [logprob for top in tops for logprob in top.values()]
        sampled = np.array(own, dtype=np.float32)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MalformedAnswer(f"the answer's logprobs are not in a known shape: {error!r}") from error
    return token_columns(np.array(token_ids, np.int32), ids, logprobs, sampled, k, prompt_ids)


_Read = Callable[[dict[str, Any]], int]


def _id_text(entry: dict[str, Any]) -> int:
    return int(entry["token"][_AFTER:])


def _named(field: str) -> _Read:
    def read(entry: dict[str, Any]) -> int:
        identifier: int = entry[field]
        return identifier

    return read


def _reader(rows: list[dict[str, Any]]) -> _Read | None:
    if not rows:
        return None
    for field in ("id", "token_id"):
        if isinstance(rows[0].get(field), int):
            return _named(field)
    # One token of a model's text may happen to read like this; a whole answer of them does not.
    return _id_text if all(row["token"].startswith(_PREFIX) for row in rows) else None


def _rectangle(tops: list[list[dict[str, Any]]], read: _Read) -> tuple[Int32, np.ndarray[Any, Any]]:
    """Ids and logprobs [T, widest row]; short rows are filled with −1 and −inf."""
    widths = {len(top) for top in tops}
    width = max(widths)
    if read is _id_text:  # spelt out: this is where a large answer's time goes
        flat_ids = [int(entry["token"][_AFTER:]) for top in tops for entry in top]
    else:
        flat_ids = [read(entry) for top in tops for entry in top]
    flat = [entry["logprob"] for top in tops for entry in top]
    if len(widths) == 1:
        shape = (len(tops), width)
        return np.array(flat_ids, np.int32).reshape(shape), np.array(flat, np.float32).reshape(shape)
    filled = np.arange(width) < np.array([len(top) for top in tops])[:, None]
    ids = np.full(filled.shape, -1, np.int32)
    logprobs = np.full(filled.shape, -np.inf, np.float32)
    ids[filled] = flat_ids
    logprobs[filled] = flat
    return ids, logprobs


def columns_of_meta_info(meta: dict[str, Any], k: int, prompt_ids: Int32 | None) -> TokenColumns:
    """Columns of SGLang's `meta_info`: `[logprob, id, text]` per token, candidates as flat arrays or such triples.

    Raises `MalformedAnswer`.
    """
    try:
        own = meta["output_token_logprobs"]
        ids = np.array([entry[1] for entry in own], np.int32)
        logprobs = np.array([entry[0] for entry in own], np.float32)
        candidates, values = _flat_candidates(meta)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, binascii.Error) as error:
        raise MalformedAnswer(f"the answer's logprobs are not in a known shape: {error!r}") from error
    return token_columns(ids, candidates, values, logprobs, k, prompt_ids)


def _flat_candidates(meta: dict[str, Any]) -> tuple[Int32, np.ndarray[Any, Any]]:
    if "output_top_logprobs_shape" in meta:
        shape = tuple(meta["output_top_logprobs_shape"])
        ids = np.frombuffer(base64.b64decode(meta["output_top_logprobs_idx_flat_b64"]), "<i4")
        values = np.frombuffer(base64.b64decode(meta["output_top_logprobs_val_flat_b64"]), "<f4")
        return ids.reshape(shape), values.reshape(shape)
    tops = [
        [{"id": entry[1], "logprob": entry[0]} for entry in top or ()] for top in meta["output_top_logprobs"]
    ]
    return _rectangle(tops, _named("id")) if tops else (np.zeros((0, 0), np.int32), np.zeros((0, 0)))


def _empty(k: int) -> tuple[Int32, Int32, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return (
        np.zeros(0, np.int32),
        np.zeros((0, k), np.int32),
        np.zeros((0, k), np.float32),
        np.zeros(0, np.float32),
    )
