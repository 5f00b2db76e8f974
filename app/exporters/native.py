"""`parquet`: the native rows, token columns included, flat and token-aligned.

    from datasets import load_dataset
    rows = load_dataset("parquet", data_files="DIR/*.parquet")["train"]
    ids = rows[0]["topk_ids"]        # flat: position by position, `lp_k` candidates each, likeliest first

Row i of the signal is the distribution that token i was drawn from: natural logarithms, unnormalised over the
candidates kept, at temperature 1. `input_ids` is the prompt's ids and then the completion's; `lp_first` is where the
signal begins.
"""

from collections.abc import Iterator
from itertools import islice
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.exporters.base import ExportRow
from app.exporters.jsonl import JsonlExporter

_ROWS_AT_ONCE: Final = 256

_MESSAGE = pa.struct(
    [(name, pa.string()) for name in ("role", "content", "reasoning_content", "tool_calls_json")]
)
_TEXT: Final = (
    "prompt",
    "answer",
    "reasoning",
    "reasoning_source",
    "finish_reason",
    "reference",
    "tools_json",
)
_SIGNAL: Final = {
    "input_ids": pa.list_(pa.int32()),
    "loss_mask": pa.list_(pa.int8()),
    "lp_first": pa.int32(),
    "lp_count": pa.int32(),
    "lp_k": pa.int16(),
    "topk_ids": pa.list_(pa.int32()),
    "topk_logprobs": pa.list_(pa.float32()),
    "sampled_logprob": pa.list_(pa.float32()),
    "sampled_rank": pa.list_(pa.int32()),
    "tail_logmass": pa.list_(pa.float32()),
}
PROVENANCE: Final = {
    "job": pa.string(),
    "stage": pa.int16(),
    "prompt_number": pa.int64(),
    "sample_index": pa.int16(),
    "custom_id": pa.string(),
    "teacher": pa.string(),
    "teacher_model": pa.string(),
    "teacher_revision": pa.string(),
    "teacher_access_route": pa.string(),
    "teacher_license": pa.string(),
    "teacher_terms": pa.string(),
    "prompt_license": pa.string(),
    "prompt_license_assumed": pa.bool_(),
    "prompt_source": pa.string(),
    "prompt_sha256": pa.string(),
    "prompt_set": pa.string(),
    "sampling_json": pa.string(),
    "engine": pa.string(),
    "attempts": pa.int16(),
    "calls": pa.int16(),
    "latency_ms": pa.int32(),
    "prompt_tokens": pa.int32(),
    "completion_tokens": pa.int32(),
    "reasoning_tokens": pa.int32(),
    "request_sha256": pa.string(),
    "response_sha256": pa.string(),
    "content_sha256": pa.string(),
    "generated_at": pa.string(),
}
SCHEMA: Final = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        *((name, pa.string()) for name in _TEXT),
        ("reasoning_truncated", pa.bool_()),
        ("response_schema_json", pa.string()),
        ("metadata_json", pa.string()),
        *PROVENANCE.items(),
        *_SIGNAL.items(),
    ]
)


class NativeExporter:
    suffix = ".parquet"
    needs_tokens = True

    def write(self, rows: Iterator[ExportRow], file: IO[bytes]) -> None:
        text = JsonlExporter()
        with pq.ParquetWriter(
            file,
            SCHEMA,
            compression="zstd",
            compression_level=9,
            use_dictionary=[n for n, t in zip(SCHEMA.names, SCHEMA.types, strict=True) if t == pa.string()],
            column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _split()},
            data_page_version="2.0",
        ) as writer:
            while portion := list(islice(rows, _ROWS_AT_ONCE)):
                table = pa.Table.from_pylist([{**text.line(row), **_signal(row)} for row in portion], SCHEMA)
                writer.write_table(table)


def _split() -> list[str]:
    return [name for name, kind in _SIGNAL.items() if pa.types.is_list(kind) and name != "loss_mask"]


def _signal(row: ExportRow) -> dict[str, Any]:
    tokens = row.tokens
    if tokens is None:
        return {}
    prompt = len(tokens.prompt_ids)
    mask = np.concatenate([np.zeros(prompt, np.int8), tokens.sampled.astype(np.int8)])
    return {
        "input_ids": np.concatenate([tokens.prompt_ids, tokens.token_ids]),
        "loss_mask": mask,
        "lp_first": prompt,
        "lp_count": len(tokens),
        "lp_k": tokens.k,
        "topk_ids": tokens.topk_ids.reshape(-1),
        "topk_logprobs": tokens.topk_logprobs.reshape(-1),
        "sampled_logprob": tokens.sampled_logprob,
        "sampled_rank": tokens.sampled_rank,
        "tail_logmass": tokens.tail_logmass,
    }
