"""Where token columns and exports lie, and how they are written so that they are whole or not there.

places.py          a folder: whole files in, ranges out; buckets.py, the same behind an S3 API
token_table.py     token columns as an Arrow table; the codec of a checkpoint's part
segments.py        a shard's immutable Parquet file: write, read, verify
segment_reader.py  a segment row group by row group
compact.py         the profile with a stated error: its codec
"""
