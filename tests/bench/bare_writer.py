"""pyarrow alone: the columns of Parquet files, read beforehand, written again in the same way.

python -m tests.bench.bare_writer TARGET FILE…     says its rows, waits for a line, writes, says that it is done
"""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def same_way(file: pq.ParquetFile) -> dict[str, object]:
    """Writer options that lay a file's columns down as they lie in `file`."""
    group = file.metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    split = [c.path_in_schema for c in columns if "BYTE_STREAM_SPLIT" in c.encodings]
    dictionary = [c.path_in_schema for c in columns if "RLE_DICTIONARY" in c.encodings]
    return {
        "compression": columns[0].compression.lower(),
        "compression_level": 3,  # as the exporter by default: a file does not tell
        "use_dictionary": dictionary or False,
        "column_encoding": dict.fromkeys(split, "BYTE_STREAM_SPLIT") or None,
        "data_page_version": "2.0",
    }


def main() -> None:
    target, *names = sys.argv[1:]
    files = [pq.ParquetFile(name) for name in names]
    groups = [file.read_row_group(i) for file in files for i in range(file.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    print(rows, flush=True)
    sys.stdin.readline()
    with pq.ParquetWriter(target, groups[0].schema, **same_way(files[0])) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))
    print(json.dumps({"rows": rows, "arrow": pa.__version__}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
