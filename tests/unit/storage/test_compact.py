"""The profile with a stated error: ids come back as they were, logprobs within the bound."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as some

from app.domain.columns import TokenColumns, forced, ids_only, token_columns
from app.storage import segments
from app.storage.compact import COMPACT, decoded, encoded
from app.storage.places import Storage
from app.storage.segments import Profile, read_segment, segment_metadata, write_segment
from app.storage.token_table import SCHEMA, token_table


def made(seed: int, tokens: int, k: int, few: int, spread: float) -> TokenColumns:
    """`few`: ids come from so many; some candidates are missing, some logprobs equal."""
    rng = np.random.default_rng(seed)
    lp = -rng.exponential(spread, (tokens, k)).astype(np.float32)
    lp[rng.random((tokens, k)) < 0.1] = -np.inf
    if k > 1:
        lp[:, 1] = lp[:, 0]
    ids = rng.integers(0, few, (tokens, k)).astype(np.int32)
    own = np.full(tokens, -0.5, np.float32)
    return token_columns(rng.integers(0, few, tokens).astype(np.int32), ids, lp, own, k)


def check(table: pa.Table, error: float) -> None:
    laid = encoded(table, 2 * error)
    assert laid.schema == COMPACT
    back = decoded(laid, 2 * error)
    assert back.schema == SCHEMA
    for field in SCHEMA:
        if field.name not in ("topk_logprobs", "sampled_logprob"):
            assert back.column(field.name).equals(table.column(field.name)), field.name
    own = (one.column("sampled_logprob").combine_chunks().flatten().to_numpy() for one in (table, back))
    np.testing.assert_array_equal(*own)  # NaN is NaN
    wanted, found = (
        one.column("topk_logprobs").combine_chunks().flatten().to_numpy() for one in (table, back)
    )
    there = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(found), there)
    # Half a unit in the last place of a float32 comes on top.
    slack = np.abs(np.spacing(wanted[there]))
    assert (np.abs(found[there].astype(np.float64) - wanted[there]) <= error + slack).all()
    again = encoded(back, 2 * error)
    names = ["id_weight", "topk_code", "topk_step"]
    assert again.select(names).equals(laid.select(names)), (
        "what was read is written again without further loss"
    )


@given(
    some.lists(
        some.tuples(
            some.integers(0, 2**32 - 1),
            some.integers(0, 12),
            some.integers(0, 9),
            some.integers(12, 60_000),
            some.sampled_from([0.01, 2.0, 30.0]),
        ),
        max_size=6,
    ),
    some.sampled_from([1 / 128, 1 / 1000, 0.3]),
)
@settings(deadline=None, max_examples=60)
def test_any_rows_come_back_within_the_bound(
    rows: list[tuple[int, int, int, int, float]], error: float
) -> None:
    columns = [made(*row) for row in rows]
    table = token_table([(number, 0, one) for number, one in enumerate(columns)])
    check(table, error)
    check(table.slice(1), error)


def test_forced_tokens_and_rows_without_candidates() -> None:
    rows = [
        forced(np.arange(3, dtype=np.int32), 4),
        ids_only(np.array([5], np.int32)),
        made(1, 5, 4, 50, 1.0),
    ]
    check(token_table([(number, 0, one) for number, one in enumerate(rows)]), 1 / 128)
    check(SCHEMA.empty_table(), 1 / 128)


def test_commonest_ids_have_the_smallest_numbers() -> None:
    ids = np.array([[7, 3], [7, 9], [3, 7], [9, 7]], np.int32)
    lp = np.tile(np.array([-0.5, -1.0], np.float32), (4, 1))
    row = token_columns(ids[:, 0].copy(), ids, lp, lp[:, 0].copy(), 2)
    laid = encoded(token_table([(0, 0, row)]), 1 / 64)
    assert laid.column("id_weight").to_pylist() == [
        [0, 0, 0, 2, 0, 0, 0, 3, 0, 2]
    ]  # 7: four times, 3 and 9: twice
    assert laid.column("topk_code").to_pylist() == [
        [0, 0, 1, 2, 1, 2, 0, 0]
    ]  # first candidates, then second ones
    assert laid.column("topk_step").to_pylist() == [[32] * 8]


def test_a_segment_of_many_row_groups(storage: Storage) -> None:
    rows = [(number, 0, made(number, 400, 128, 50_000, 3.0)) for number in range(100)]
    table = token_table(rows)
    assert table.nbytes > segments.GROUP_BYTES
    write_segment(storage, "a", [table], {}, level=1, profile=Profile("compact"))
    metadata = segment_metadata(storage, "a")
    told = (metadata["profile"], metadata["logprob_error"], metadata["logprob_step"])
    assert told == ("compact", 1 / 128, 1 / 64)
    with storage.open("a") as file:
        assert pq.ParquetFile(io.BytesIO(file.read())).metadata.num_row_groups > 1
    assert read_segment(storage, "a").column("topk_ids").equals(table.column("topk_ids"))
