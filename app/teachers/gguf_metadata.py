"""The metadata at the head of a GGUF file: template and vocabulary, without loading the model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from app.errors import StorageError

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_CONTROL = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL

Scalar = int | float | bool | str


@dataclass(frozen=True)
class GgufMetadata:
    """`tokens[i]`: the bytes that token i stands for. `control`: ids of those that are written as no text.

    `chat_template`: Jinja, as the file carries it.
    """

    tokens: tuple[bytes, ...]
    control: frozenset[int]
    chat_template: str
    tokenizer_sha256: str  # over tokens, merges and token types, in the file's order
    eos_token_id: int
    name: str


@lru_cache(maxsize=2)
def read_metadata(path: Path) -> GgufMetadata:
    """Raises `StorageError` for a file that is not GGUF or ends early."""
    try:
        with path.open("rb") as file:
            values = _read_all(file)
    except (OSError, struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError) as error:
        raise StorageError(f"{path} cannot be read as a GGUF file: {error!r}") from error
    tokens, merges, types = (
        values.get(f"tokenizer.ggml.{n}", []) for n in ("tokens", "merges", "token_type")
    )
    kinds = types if isinstance(types, list) else []
    template, eos = values.get("tokenizer.chat_template"), values.get("tokenizer.ggml.eos_token_id")
    if (
        not isinstance(tokens, list)
        or not tokens
        or not isinstance(template, str)
        or not isinstance(eos, int)
    ):
        raise StorageError(f"{path} carries no vocabulary, no chat template or no end token")
    digest = hashlib.sha256()
    for part in (tokens, merges, types):
        digest.update(repr(part).encode())
    return GgufMetadata(
        tokens=tuple(_token_bytes(str(token)) for token in tokens),
        control=frozenset(place for place, kind in enumerate(kinds) if kind == _CONTROL),
        chat_template=template,
        tokenizer_sha256=digest.hexdigest(),
        eos_token_id=eos,
        name=str(values.get("general.name", "")),
    )


def _read_all(file: BinaryIO) -> dict[str, Scalar | list[Scalar]]:
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version != 3:
        raise struct.error(f"magic {magic!r}, version {version}")
    values: dict[str, Scalar | list[Scalar]] = {}
    for _ in range(count):
        key = _string(file)
        (kind,) = struct.unpack("<I", file.read(4))
        values[key] = _array(file) if kind == _ARRAY else _scalar(file, kind)
    return values


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode("utf-8")


def _scalar(file: BinaryIO, kind: int) -> Scalar:
    if kind == _STRING:
        return _string(file)
    form = "<" + _SCALARS[kind]
    value: Scalar = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value


def _array(file: BinaryIO) -> list[Scalar]:
    kind, count = struct.unpack("<IQ", file.read(12))
    if kind == _STRING:
        return [_string(file) for _ in range(count)]
    form = f"<{count}{_SCALARS[kind]}"
    return list(struct.unpack(form, file.read(struct.calcsize(form))))


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, reversed (Radford et al. 2019, `bytes_to_unicode` of the release)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return stand_ins | {chr(256 + place): byte for place, byte in enumerate(others)}


def _token_bytes(token: str) -> bytes:
    table = _byte_of()
    try:
        return bytes(table[letter] for letter in token)
    except KeyError:  # a special token, written as it is
        return token.encode()
