"""A shard's segment: whole, sorted, deterministic, verified, readable by plain Parquet."""

from io import BytesIO
from pathlib import Path
from shutil import copyfileobj

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.domain.columns import TokenColumns, token_columns
from app.errors import StorageError
from app.storage.places import LocalFolder
from app.storage.segment_reader import rows_of
from app.storage.segments import (
    FP16,
    Profile,
    read_segment,
    rewrite_segment,
    segment_metadata,
    verify_segment,
    write_segment,
)
from app.storage.token_table import columns_of, token_table


def columns(rng: np.random.Generator, tokens: int, k: int) -> TokenColumns:
    lp = -np.sort(rng.exponential(4, (tokens, k)).astype(np.float32), axis=1) - np.log(k).astype(np.float32)
    ids = np.stack([rng.choice(50_000, k, replace=False) for _ in range(tokens)]).astype(np.int32)
    return token_columns(
        ids[:, 0].copy(), ids, lp, lp[:, 0].copy(), k, prompt_ids=rng.integers(0, 9, 4).astype(np.int32)
    )


def test_what_is_written_is_read_sorted_and_rounded(storage: LocalFolder) -> None:
    rng = np.random.default_rng(3)
    late, early = columns(rng, 30, 8), columns(rng, 20, 8)
    file = write_segment(
        storage,
        "segments/a.parquet",
        [token_table([(5, 1, late)]), token_table([(5, 0, early)])],
        {"engine": "test"},
    )
    table = read_segment(storage, "segments/a.parquet")
    assert (file.n_rows, file.k) == (2, 8)
    assert table.column("sample_index").to_pylist() == [0, 1]
    for row, wanted in enumerate((early, late)):
        found = columns_of(table, row)
        np.testing.assert_array_equal(found.topk_ids, wanted.topk_ids)
        np.testing.assert_array_equal(found.sampled_logprob, wanted.sampled_logprob)
        np.testing.assert_array_equal(found.tail_logmass, wanted.tail_logmass)
        np.testing.assert_array_equal(
            found.topk_logprobs, wanted.topk_logprobs.astype(np.float16).astype(np.float32)
        )
        assert np.abs(found.topk_logprobs - wanted.topk_logprobs)[wanted.topk_logprobs > -16].max() <= 1 / 256
    assert segment_metadata(storage, "segments/a.parquet") == {
        "engine": "test",
        "format": "retort-segment-1",
        "profile": "fp16",
        "k": 8,
    }


@pytest.mark.parametrize("profile", [FP16, Profile("compact"), Profile("compact", 1 / 16)])
def test_a_segment_that_is_written_again_without_some_rows_loses_nothing_more(
    storage: LocalFolder, profile: Profile
) -> None:
    rng = np.random.default_rng(5)
    rows = [(number, index, columns(rng, 9, 6)) for number in range(4) for index in range(2)]
    bound = {"engine": "test"}
    first = write_segment(storage, "a", [token_table(rows)], bound, profile=profile)
    same = rewrite_segment(storage, "a", "b", set())
    assert first.sha256 == same.sha256
    rewrite_segment(storage, "a", "c", {(1, 0), (3, 1)})
    before, after = read_segment(storage, "a"), read_segment(storage, "c")
    kept = [i for i, row in enumerate(rows) if row[:2] not in {(1, 0), (3, 1)}]
    assert after.equals(before.take(pa.array(kept)))
    assert segment_metadata(storage, "c") == segment_metadata(storage, "a")


def test_some_rows_of_a_segment(storage: LocalFolder) -> None:
    rng = np.random.default_rng(6)
    rows = [(number, 0, columns(rng, 3, 2)) for number in range(10)]
    for profile in (FP16, Profile("compact")):
        write_segment(storage, "a", [token_table(rows)], {}, profile=profile)
        found = rows_of(storage, "a", {2, 7, 99})
        assert found.equals(read_segment(storage, "a").take(pa.array([2, 7])))
        assert rows_of(storage, "a", {99}).num_rows == rows_of(storage, "a", ()).num_rows == 0


def test_equal_input_gives_equal_bytes(storage: LocalFolder) -> None:
    table = token_table([(i, 0, columns(np.random.default_rng(i), 10, 4)) for i in range(20)])
    one = write_segment(storage, "a", [table.slice(0, 7), table.slice(7)], {"b": 1, "a": 2})
    two = write_segment(storage, "b", [table.slice(7), table.slice(0, 7)], {"a": 2, "b": 1})
    assert one.sha256 == two.sha256


def test_signal_columns_are_split_by_byte_without_a_dictionary(storage: LocalFolder, tmp_path: Path) -> None:
    write_segment(storage, "a", [token_table([(0, 0, columns(np.random.default_rng(1), 100, 20))])], {})
    group = pq.ParquetFile(tmp_path / "a").metadata.row_group(0)
    by_path = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("topk_ids", "topk_logprobs", "token_ids", "sampled_logprob", "tail_logmass"):
        column = by_path[f"{name}.list.element"]
        assert "BYTE_STREAM_SPLIT" in column.encodings
        assert not any("DICTIONARY" in encoding for encoding in column.encodings)
        assert column.compression == "ZSTD"


def test_one_flipped_byte_is_found(storage: LocalFolder, tmp_path: Path) -> None:
    file = write_segment(storage, "a", [token_table([(0, 0, columns(np.random.default_rng(1), 10, 4))])], {})
    verify_segment(storage, "a", file.sha256)
    raw = bytearray((tmp_path / "a").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(StorageError, match="damaged"):
        verify_segment(storage, "a", file.sha256)


def test_a_completion_that_is_there_twice_is_refused(storage: LocalFolder) -> None:
    table = token_table([(3, 1, columns(np.random.default_rng(1), 2, 1))])
    with pytest.raises(StorageError, match="prompt 3, sample 1 has token columns twice"):
        write_segment(storage, "a", [table, table], {})
    assert list(storage.list()) == []


def test_a_shard_without_tokens_is_a_segment_without_rows(storage: LocalFolder) -> None:
    file = write_segment(storage, "a", [], {})
    assert (file.n_rows, file.k) == (0, 0)
    assert read_segment(storage, "a").num_rows == 0


def test_a_file_that_is_no_segment_says_so(storage: LocalFolder) -> None:
    storage.write_atomically("a", lambda out: copyfileobj(BytesIO(b"not parquet at all"), out))
    with pytest.raises(StorageError, match="damaged"):
        read_segment(storage, "a")
    with pytest.raises(StorageError, match="cannot be read"):
        read_segment(storage, "absent")
