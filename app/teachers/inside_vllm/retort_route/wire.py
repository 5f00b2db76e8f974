"""The bytes of an answer, version 1: arrays as they are, described by a small JSON header (docs/compact-route.md)."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

VERSION = 1
GENERATE, INFO = "/retort/v1/generate", "/retort/v1/info"
MEDIA_TYPE = "application/vnd.retort.columns"
MAGIC = b"RTRTCOLS"
PREFIX = struct.Struct("<8sHHI")  # magic, version, 0, length of the header


@dataclass(frozen=True)
class Rows:
    """Logprobs of R consecutive positions. Column 0 is the token that stands there, columns 1 … k the likeliest tokens
    in descending order, the one that stands there among them or not. `k` is None where no logprobs were asked for."""

    ids: "np.ndarray[Any, np.dtype[np.int32]]"  # [R, k + 1], or [R, 1] without logprobs
    logprobs: "np.ndarray[Any, np.dtype[np.float32]]"  # [R, k + 1], or [R, 0]
    ranks: "np.ndarray[Any, np.dtype[np.int32]]"  # [R], of the token that stands there, 1 = likeliest; or [0]


@dataclass(frozen=True)
class Choice:
    index: int
    rows: Rows
    text: str
    finish_reason: str | None
    stop_reason: int | str | None = None


def encode(header: Mapping[str, Any], choices: Iterable[Choice], prompt: Rows | None = None) -> bytes:
    """The body of an answer. `header`: model, fingerprint, request_id, k, prompt_k, prompt_tokens, cached_tokens."""
    arrays: list[bytes] = []
    texts: list[bytes] = []
    told = []
    if prompt is not None:
        arrays += _arrays(prompt)
    for choice in choices:
        text = choice.text.encode("utf-8", "replace")
        arrays += _arrays(choice.rows)
        texts.append(text)
        told.append(
            {
                "index": choice.index,
                "tokens": len(choice.rows.ids),
                "text_bytes": len(text),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
        )
    whole = {**header, "prompt_rows": 0 if prompt is None else len(prompt.ids), "choices": told}
    head = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 4)  # the arrays begin at a multiple of four
    return b"".join((PREFIX.pack(MAGIC, VERSION, 0, len(head)), head, *arrays, *texts))


def _arrays(rows: Rows) -> list[bytes]:
    return [
        np.ascontiguousarray(rows.ids, "<i4").tobytes(),
        np.ascontiguousarray(rows.logprobs, "<f4").tobytes(),
        np.ascontiguousarray(rows.ranks, "<i4").tobytes(),
    ]


def rows_of(token_ids: list[int], flat: Any, k: int | None) -> Rows:
    """vLLM's `FlatLogprobs` over exactly these tokens as arrays. Raises `ValueError` for any other shape."""
    count = len(token_ids)
    if k is None:
        ids = np.array(token_ids, np.int32).reshape(count, 1)
        return Rows(ids, np.zeros((count, 0), np.float32), np.zeros(0, np.int32))
    if flat is None or len(flat.token_ids) != count * (k + 1):
        raise ValueError(f"vLLM returned logprobs of another shape than [{count}, {k + 1}]")
    ids = np.array(flat.token_ids, np.int32).reshape(count, k + 1)
    if not (ids[:, 0] == np.array(token_ids, np.int32)).all():
        raise ValueError("vLLM's logprobs do not begin with the token that stands there")
    logprobs = np.array(flat.logprobs, np.float32).reshape(count, k + 1)
    ranks = np.array(flat.ranks, dtype=np.int64).reshape(count, k + 1)[:, 0].astype(np.int32)
    return Rows(ids, logprobs, ranks)
