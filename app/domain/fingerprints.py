"""Identity of content: canonical JSON and SHA-256."""

import hashlib
import secrets
import time

import orjson

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no white space: equal values give equal bytes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def sha256(value: bytes) -> bytes:
    """The 32 raw bytes of the digest."""
    return hashlib.sha256(value).digest()


def fingerprint(value: object) -> bytes:
    """SHA-256 over the canonical JSON of a value: 32 raw bytes."""
    return sha256(canonical_json(value))


def chained(previous: bytes, item: bytes) -> bytes:
    """The hash of a list that grows at its end: H(previous ‖ item)."""
    return sha256(previous + item)


def source_key(source: str | None) -> bytes | None:
    """What a prompt's source is found by: 16 bytes of its SHA-256, however long it is."""
    return None if source is None else sha256(source.encode())[:16]


def new_id(prefix: str) -> str:
    """`prefix_` and 20 Crockford base-32 characters: 9 of milliseconds (ids sort by time), 11 random (55 bits)."""
    millis = int(time.time() * 1000)
    value = (millis << 55) | secrets.randbits(55)
    return prefix + "_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(95, -1, -5))
