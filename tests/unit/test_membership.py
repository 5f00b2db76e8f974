"""Bits of the rows that are in a file."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.domain.membership import CHUNK, holds, packed, unpacked

numbers = st.lists(st.integers(0, 3 * CHUNK), max_size=200)


@given(numbers)
def test_what_is_packed_comes_out_again(given_numbers: list[int]) -> None:
    found = packed(np.array(given_numbers, np.int64))
    out = [int(n) for chunk, (_, bits) in sorted(found.items()) for n in unpacked(chunk, bits)]
    assert out == sorted(set(given_numbers))
    assert sum(n for n, _ in found.values()) == len(set(given_numbers))
    for chunk, (_, bits) in found.items():
        for number in range(chunk * CHUNK, chunk * CHUNK + 40):
            assert holds(chunk, bits, number) == (number in given_numbers)


def test_a_million_rows_take_little() -> None:
    half = np.flatnonzero(np.random.default_rng(0).random(1_000_000) < 0.5)  # the worst: nothing to compress
    assert sum(len(bits) for _, bits in packed(half).values()) < 130_000
    whole = packed(np.arange(1_000_000))
    assert sum(len(bits) for _, bits in whole.values()) < 2_000
