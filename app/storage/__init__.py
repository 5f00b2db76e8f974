"""Where token columns and exports lie, and how they are written so that they are whole or not there.

places.py       a folder or a bucket: whole files in, ranges out
token_table.py  token columns as an Arrow table; the codec of a checkpoint's part
segments.py     a shard's immutable Parquet file: write, read, verify
"""
