"""Which prompts of a chunk have a row in a file: a bit each, so that ten million rows take about a megabyte."""

import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CHUNK: Final = 65_536

Numbers = NDArray[np.int64]


def packed(numbers: "NDArray[Any]") -> dict[int, tuple[int, bytes]]:
    """Prompt numbers → chunk → (how many there are, their bits). Doubles count once."""
    found: dict[int, tuple[int, bytes]] = {}
    ordered = np.sort(np.asarray(numbers, np.int64))
    unique = ordered[np.diff(ordered, prepend=-1) != 0]
    chunks, starts = np.unique(unique // CHUNK, return_index=True)
    for chunk, mine in zip(chunks, np.split(unique, starts)[1:], strict=True):
        bits = np.zeros(CHUNK, np.uint8)
        bits[mine - chunk * CHUNK] = 1
        found[int(chunk)] = (int(mine.size), zlib.compress(np.packbits(bits).tobytes(), 6))
    return found


def unpacked(chunk: int, bits: bytes) -> Numbers:
    """The prompt numbers of a chunk, ascending."""
    flags = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8))
    return np.flatnonzero(flags).astype(np.int64) + chunk * CHUNK


def holds(chunk: int, bits: bytes, number: int) -> bool:
    place = number - chunk * CHUNK
    byte = zlib.decompress(bits)[place >> 3]
    return bool(byte >> (7 - (place & 7)) & 1)
