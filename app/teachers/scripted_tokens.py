"""The scripted teacher's tokens: what it answers, how likely it says they are, and how the compact route carries them.

A token's logprobs depend on the token alone, so that scoring an answer agrees with having made it.
"""

import hashlib
import struct
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np

from app.teachers.inside_vllm.retort_route.wire import VERSION, Choice, Rows, encode

VOCABULARY = 50_000
_REMEMBERED = 100_000


@lru_cache(maxsize=100_000)
def ids_of(key: str, count: int) -> tuple[int, ...]:
    stream = hashlib.shake_128(key.encode()).digest(2 * count)
    return tuple(int.from_bytes(stream[i : i + 2], "little") % VOCABULARY for i in range(0, 2 * count, 2))


def sample_ids(key: str, seed: int | None, index: int, count: int) -> tuple[int, ...]:
    """The answer to a prompt. As in vLLM, sample `index` of a request has seed + index."""
    return ids_of(f"{key}|{None if seed is None else seed + index}|{index if seed is None else ''}", count)


def text_of(ids: tuple[int, ...]) -> str:
    """The text that these token ids stand for: one word per token."""
    return "".join(f" t{i}" for i in ids)


def candidates(token: int, k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens at a position, with logprobs that sum to less than 1.

    Every seventh token is drawn from outside the first k: the sampled token then stands beside the candidates.
    """
    inside = token % 7 != 0
    others = [(token + 1 + j) % VOCABULARY for j in range(k)]
    ids = [token, *others[: k - 1]] if inside else others
    return [(identifier, logprob_of(rank)) for rank, identifier in enumerate(ids[:k])]


def sampled_logprob(token: int, k: int) -> float:
    return logprob_of(0 if token % 7 != 0 else k + 3)


@lru_cache(maxsize=2048)
def logprob_of(rank: int) -> float:
    """A float32, as engines compute it: as long in JSON as a real one."""
    value: float = struct.unpack("f", struct.pack("f", -0.7 - 0.913 * rank))[0]
    return value


class Conversations:
    """Which conversation the ids of a prompt were rendered from: the same script holds for text and for ids."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def render(self, messages: list[dict[str, Any]]) -> tuple[int, ...]:
        text = "".join(f"<{message['role']}>{message.get('content')}" for message in messages)
        ids = ids_of(text, max(1, len(text) // 4))
        self._known[ids] = str(messages[-1].get("content"))
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return ids

    def key(self, prompt: Any) -> str:
        """What the script knows a prompt of `/v1/completions` or of the compact route by."""
        if isinstance(prompt, list):
            known = self._known.get(tuple(prompt))
            return known if known is not None else ids_key(tuple(prompt))
        return repr(prompt)


def ids_key(ids: tuple[int, ...]) -> str:
    return hashlib.sha256(repr(ids).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _rows(ids: tuple[int, ...], k: int | None) -> Rows:
    """Column 0 the token that stands there, then the likeliest in descending order."""
    own = np.array(ids, np.int32).reshape(len(ids), 1)
    if k is None:
        return Rows(own, np.zeros((len(ids), 0), np.float32), np.zeros(0, np.int32))
    ranked = [[(token, sampled_logprob(token, k)), *candidates(token, k)] for token in ids]
    return Rows(
        np.array([[identifier for identifier, _ in row] for row in ranked], np.int32).reshape(
            len(ids), k + 1
        ),
        np.array([[logprob for _, logprob in row] for row in ranked], np.float32).reshape(len(ids), k + 1),
        np.array([1 if token % 7 != 0 else k + 4 for token in ids], np.int32),
    )


def compact_payload(
    body: dict[str, Any], key: str, count: int, finish: str, model: str, fingerprint: str, spoil: str | None
) -> bytes:
    """An answer of the compact route. `spoil`: a fault of the script that changes what is in it."""
    k, prompt_k = body.get("top_logprobs"), body.get("prompt_logprobs")
    prompt = tuple(body["prompt_token_ids"])
    choices = []
    for index in range(int(body.get("n") or 1) if body.get("max_tokens") != 0 else 0):
        ids = sample_ids(key, body.get("seed"), index, count)
        rows = _spoilt(_rows(ids, k), spoil)
        choices.append(Choice(index, rows, text_of(ids) if body.get("text", True) else "", finish))
    header = {
        "model": model,
        "fingerprint": fingerprint,
        "k": k,
        "prompt_k": prompt_k,
        "prompt_tokens": None if spoil == "no-usage" else len(prompt),
        "cached_tokens": 0,
    }
    scored = None
    if prompt_k is not None:
        scored = _rows(prompt[max(1, body.get("prompt_logprobs_start") or 1) :], prompt_k)
    return encode(header, choices, scored)


def _spoilt(rows: Rows, spoil: str | None) -> Rows:
    if spoil == "no-logprobs":
        return Rows(rows.ids, np.full_like(rows.logprobs, -np.inf), rows.ranks)
    if spoil == "nan-logprobs":
        return Rows(rows.ids, np.full_like(rows.logprobs, np.nan), rows.ranks)
    if spoil == "zero-logprobs":
        flat = np.where(np.arange(rows.logprobs.shape[1]) < 2, np.float32(0), np.float32(-9999))
        return Rows(rows.ids, np.broadcast_to(flat, rows.logprobs.shape).astype(np.float32), rows.ranks)
    return rows


def prompt_logprobs(ids: tuple[int, ...], k: int) -> list[dict[str, Any] | None]:
    """Of `/v1/completions`: nothing for the first token, then one map per token."""
    scored: list[dict[str, Any] | None] = [None]
    for token in ids[1:]:
        row: dict[str, Any] = {
            str(token): {"logprob": sampled_logprob(token, k), "rank": 1 if token % 7 != 0 else k + 4}
        }
        for rank, (identifier, logprob) in enumerate(candidates(token, k), start=1):
            row[str(identifier)] = {"logprob": logprob, "rank": rank}
        scored.append(row)
    return scored


def about(model: str, version: str, max_logprobs: int, mode: str, fingerprint: str) -> dict[str, Any]:
    """What the compact route says of the server."""
    return {
        "version": VERSION,
        "engine": "vllm",
        "engine_version": version,
        "fingerprint": fingerprint,
        "model": model,
        "models": [model],
        "max_model_len": 32768,
        "vocab_size": VOCABULARY,
        "max_logprobs": max_logprobs,
        "logprobs_mode": mode,
        "dtype": "scripted",
        "priority": True,
        "hardware": "scripted",
    }
