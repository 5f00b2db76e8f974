"""A portion ends at the same row however the rows came."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from app.services.export.grouping import PORTION_BYTES, Portions


def portions_of(sizes: list[int], pages: list[int], rows_per_file: int) -> list[list[int]]:
    """The rows (by number) of each portion; a file ends when it has its rows."""
    portions, made, in_file, start = Portions(rows_per_file), [], 0, 0

    def cut() -> None:
        nonlocal in_file
        made.append(portions.cut().column(0).to_pylist())
        in_file += len(made[-1])
        if in_file >= rows_per_file:
            portions.new_file()
            in_file = 0

    for page in [*pages, len(sizes)]:
        end = min(start + page, len(sizes))
        if end > start:
            table = pa.table({"n": pa.array(range(start, end), pa.int64())})
            portions.add(table, np.array(sizes[start:end], np.int64))
        while portions.full:
            cut()
        start = end
    if portions.n_rows:
        cut()
    return made


@given(
    st.lists(st.integers(0, PORTION_BYTES // 2), max_size=60),
    st.lists(st.integers(0, 20), max_size=20),
    st.integers(1, 25),
)
def test_a_portion_ends_at_the_same_row_however_the_rows_came(
    sizes: list[int], pages: list[int], rows_per_file: int
) -> None:
    made = portions_of(sizes, pages, rows_per_file)
    assert made == portions_of(sizes, [], rows_per_file)
    assert [row for portion in made for row in portion] == list(range(len(sizes)))
    for portion in made:
        assert sum(sizes[row] for row in portion[:-1]) < PORTION_BYTES
