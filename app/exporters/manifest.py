"""How a manifest is spelt: for people and programs, and so that one changed byte of it is seen."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

OWN_HASH: Final = "manifest_sha256"


def as_json(value: object) -> bytes:
    """Indented, keys in order, a newline at the end: equal values give equal bytes."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, option=options)


def own_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of the manifest without the field that holds it."""
    rest = {name: value for name, value in manifest.items() if name != OWN_HASH}
    return hashlib.sha256(as_json(rest)).hexdigest()


def with_own_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest, OWN_HASH: own_hash(manifest)}
