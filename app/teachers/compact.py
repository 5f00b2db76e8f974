"""Answers of the compact route to token columns.

What came over the wire is believed in nothing: every length is checked against the bytes that are there before it is
used. docs/compact-route.md describes the format.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from app.domain.columns import Int32, TokenColumns, ids_only, token_columns
from app.errors import MalformedAnswer
from app.teachers.inside_vllm.retort_route.wire import MAGIC, PREFIX, VERSION, Rows

_MAX_HEADER = 1 << 20
_MAX_CHOICES = 16_384


@dataclass(frozen=True, slots=True)
class CompactChoice:
    index: int
    text: str
    finish_reason: str
    stop_reason: int | str | None
    tokens: TokenColumns


@dataclass(frozen=True, slots=True)
class CompactAnswer:
    model: str
    fingerprint: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    choices: tuple[CompactChoice, ...]
    prompt: TokenColumns | None  # the scored part of the prompt


class _Reader:
    """Takes arrays off a body, one after the other."""

    def __init__(self, body: bytes, at: int) -> None:
        self._body, self._at = memoryview(body), at

    def array(self, dtype: str, *shape: int) -> Any:
        count = int(np.prod(shape, dtype=object))
        return np.frombuffer(self.bytes(4 * count), dtype).reshape(shape)

    def bytes(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._body):
            raise MalformedAnswer("the compact answer is cut off")
        taken, self._at = self._body[self._at : end], end
        return taken

    def at_end(self) -> bool:
        return self._at == len(self._body)


def decode(body: bytes, n: int, k: int | None, prompt_k: int | None, prompt_ids: Int32) -> CompactAnswer:
    """The answer to a request for `n` samples with `k` top logprobs, and for scores with `prompt_k` (None: without).

    `prompt_ids` becomes part of the columns. Raises `MalformedAnswer`.
    """
    header, reader = _header(body)
    if header.get("k") != k or header.get("prompt_k") != prompt_k:
        raise MalformedAnswer("the compact answer has another number of logprobs than was asked for")
    told = header.get("choices")
    if not isinstance(told, list) or len(told) > min(n, _MAX_CHOICES):
        raise MalformedAnswer(
            "the compact answer has no list of choices, or more of them than were asked for"
        )
    prompt = None
    if prompt_k is not None:
        prompt = _columns(reader, _count(header, "prompt_rows"), prompt_k, None)
    elif header.get("prompt_rows"):
        raise MalformedAnswer("the compact answer scores a prompt, which was not asked for")
    columns = [_columns(reader, _count(choice, "tokens"), k, prompt_ids) for choice in told]
    texts = [_text(reader.bytes(_count(choice, "text_bytes"))) for choice in told]
    if not reader.at_end():
        raise MalformedAnswer("the compact answer is longer than it says")
    choices = tuple(_choice(*parts, n) for parts in zip(told, columns, texts, strict=True))
    if len({choice.index for choice in choices}) != len(choices):
        raise MalformedAnswer("the compact answer numbers two choices alike")
    return CompactAnswer(
        model=str(header.get("model")),
        fingerprint=_optional(header, "fingerprint", str),
        prompt_tokens=_optional(header, "prompt_tokens", int),
        cached_tokens=_optional(header, "cached_tokens", int),
        choices=choices,
        prompt=prompt,
    )


def _header(body: bytes) -> tuple[dict[str, Any], _Reader]:
    if len(body) < PREFIX.size:
        raise MalformedAnswer("the compact answer is cut off")
    magic, version, _, length = PREFIX.unpack_from(body)
    if magic != MAGIC:
        raise MalformedAnswer("the answer is not one of the compact route")
    if version != VERSION:
        raise MalformedAnswer(f"the compact answer is of version {version}; this side reads {VERSION}")
    end = PREFIX.size + length
    if length > _MAX_HEADER or end > len(body):
        raise MalformedAnswer("the compact answer is cut off")
    try:
        header = orjson.loads(body[PREFIX.size : end])
    except orjson.JSONDecodeError as error:
        raise MalformedAnswer(f"the header of the compact answer is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise MalformedAnswer("the header of the compact answer is not a JSON object")
    return header, _Reader(body, end)


def _columns(reader: _Reader, rows: int, k: int | None, prompt_ids: Int32 | None) -> TokenColumns:
    width = 1 if k is None else k + 1
    ids = reader.array("<i4", rows, width)
    logprobs = reader.array("<f4", rows, 0 if k is None else width)
    ranks = reader.array("<i4", 0 if k is None else rows)
    own = ids[:, 0]
    if (own < 0).any():
        raise MalformedAnswer("the compact answer has a negative token id")
    return columns_of(Rows(ids, logprobs, ranks), k, prompt_ids)


def columns_of(rows: Rows, k: int | None, prompt_ids: Int32 | None) -> TokenColumns:
    """Raises `MalformedAnswer` for NaN and the like."""
    own = np.ascontiguousarray(rows.ids[:, 0])
    if k is None:
        return ids_only(own, prompt_ids)
    ranks = np.maximum(rows.ranks, 0)
    return token_columns(own, rows.ids, rows.logprobs, rows.logprobs[:, 0], k, prompt_ids, ranks)


def _choice(told: dict[str, Any], tokens: TokenColumns, text: str, n: int) -> CompactChoice:
    index, finish, stop = _count(told, "index"), told.get("finish_reason"), told.get("stop_reason")
    if index >= n:
        raise MalformedAnswer(f"the compact answer numbers a choice {index}")
    if not isinstance(finish, str):
        raise MalformedAnswer("the compact answer has a choice that did not finish")
    if not isinstance(stop, int | str | None):
        raise MalformedAnswer("the compact answer has a stop reason that is none")
    return CompactChoice(index, text, finish, stop, tokens)


def _text(found: memoryview) -> str:
    try:
        return str(found, "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedAnswer("the compact answer has text that is not UTF-8") from error


def _count(told: Any, name: str) -> int:
    value = told.get(name) if isinstance(told, dict) else None
    if type(value) is not int or value < 0:
        raise MalformedAnswer(f"the compact answer has no {name}")
    return value


def _optional(header: dict[str, Any], name: str, kind: type) -> Any:
    value = header.get(name)
    return value if type(value) is kind else None
