"""What is read of a JSON text is all that it says."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.json_text import check_nothing_lost
from app.errors import InvalidRow

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(['{"a": 1, "a": 2}', '":', '\\": 1', "1" * 40]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", '"', '":', "\\"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(values, st.sampled_from([(",", ":"), (", ", ": "), (" , ", "\t:\n")]))
def test_whatever_is_whole_passes(value: object, separators: tuple[str, str]) -> None:
    text = json.dumps(value, separators=separators).encode()
    check_nothing_lost(text, orjson.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a" : 1, "a"\t: 1}',
        '{"a":1,"\\u0061":2}',
        '[{"x":{"a":[],"b":":","a":{}}}]',
        '{"text":"{\\"q\\": 1}","a":1,"a":2}',
    ],
)
def test_a_name_that_stands_twice(text: str) -> None:
    with pytest.raises(InvalidRow, match="the name 'a' stands twice"):
        check_nothing_lost(text.encode(), orjson.loads(text))


@pytest.mark.timeout(60)
def test_many_names_are_looked_through_once() -> None:
    """Of a row of a few MB: looking for each name among all of them takes minutes."""
    text = "{" + "".join(f'"{number}":1,' for number in range(200_000)) + '"199999":2}'
    with pytest.raises(InvalidRow, match="the name '199999' stands twice"):
        check_nothing_lost(text.encode(), orjson.loads(text))


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1" * 300])
def test_a_whole_number_of_more_than_64_bits(number: str) -> None:
    text = f'{{"metadata": {{"id": {number}}}}}'
    with pytest.raises(InvalidRow, match="does not fit into 64 bits"):
        check_nothing_lost(text.encode(), orjson.loads(text))


def test_large_numbers_that_are_floats_by_their_spelling() -> None:
    check_nothing_lost(b'{"a": 1e30, "b": -1.5e300}', {"a": 1e30, "b": -1.5e300})
