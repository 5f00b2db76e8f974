"""Token columns through a part and a segment: the same numbers come back."""

import numpy as np
import pytest

from app.domain.columns import TokenColumns, forced, ids_only, token_columns
from app.storage.token_table import SCHEMA, columns_of, decode_part, encode_part, token_table


def random_columns(rng: np.random.Generator, tokens: int, k: int, prompt: int = 3) -> TokenColumns:
    """A plausible completion: k candidates a position of 5,000 tokens, the sampled one among the likely."""
    logits = rng.normal(0, 3, (tokens, 5000))
    lp = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    ids = np.argsort(-lp, axis=1)[:, : max(k, 4)].astype(np.int32)
    picked = np.take_along_axis(lp, ids, axis=1)
    own = rng.integers(0, ids.shape[1], tokens)
    at = np.arange(tokens)
    return token_columns(
        ids[at, own],
        ids,
        picked,
        picked[at, own],
        k,
        prompt_ids=rng.integers(0, 5000, prompt).astype(np.int32),
    )


def assert_equal(found: TokenColumns, wanted: TokenColumns) -> None:
    for name in TokenColumns.__slots__:
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("k", [0, 1, 20])
def test_a_part_gives_back_every_number(k: int) -> None:
    rng = np.random.default_rng(1)
    rows = [
        (7, 0, random_columns(rng, 5, k)),
        (7, 1, random_columns(rng, 1, k, prompt=0)),
        (9, 0, forced(np.arange(3, dtype=np.int32), k)),
    ]
    table = decode_part(encode_part(token_table(rows)))
    assert table.schema == SCHEMA
    for index, (number, sample, columns) in enumerate(rows):
        assert table.column("prompt_number")[index].as_py() == number
        assert table.column("sample_index")[index].as_py() == sample
        assert_equal(columns_of(table, index), columns)


def test_completions_of_different_k_share_a_table() -> None:
    rng = np.random.default_rng(2)
    rows = [
        (0, 0, random_columns(rng, 4, 3)),
        (1, 0, ids_only(np.array([1, 2], np.int32))),
        (2, 0, random_columns(rng, 2, 8)),
    ]
    table = decode_part(encode_part(token_table(rows)))
    for index, (_, _, columns) in enumerate(rows):
        assert_equal(columns_of(table, index), columns)


def test_an_empty_table_has_the_schema() -> None:
    assert decode_part(encode_part(token_table([]))).schema == SCHEMA
    assert token_table([]).num_rows == 0


def test_a_completion_without_tokens_is_a_row() -> None:
    table = token_table([(0, 0, ids_only(np.zeros(0, np.int32))), (1, 0, ids_only(np.array([5], np.int32)))])
    assert len(columns_of(table, 0)) == 0
    assert columns_of(table, 1).token_ids.tolist() == [5]
