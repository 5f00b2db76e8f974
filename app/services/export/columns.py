"""Rows of the database as the columns of a batch (`app.exporters.batch`): a column at a time, not a dict a row."""

from binascii import hexlify
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.db.export_rows import Columns
from app.domain.splits import SPLITS
from app.exporters import lists
from app.exporters.batch import TEXT
from app.services.export.facts import JobFacts, LaneFacts, StageFacts
from app.services.export.prompts import Prompts

_AS_THEY_ARE = (
    "reasoning",
    "reasoning_source",
    "finish_reason",
    "custom_id",
    "engine",
    "prompt_license",
    "teacher_license",
)
_ASIDES = {
    "reference": "reference",
    "tools_json": "tools",
    "response_schema_json": "response_schema",
    "metadata_json": "metadata",
}
_NUMBERS = (
    "prompt_number",
    "sample_index",
    "attempts",
    "calls",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
)
_HASHES = {
    "prompt_sha256": "prompt_hash",
    "request_sha256": "request_hash",
    "response_sha256": "response_hash",
    "content_sha256": "content_hash",
}


def text_batch(prompts: Prompts, job: JobFacts, stage: StageFacts) -> pa.RecordBatch:
    """The columns of `TEXT` of these rows, which are of one job and stage."""
    given, n = prompts.rows, len(prompts.of_row)
    made: dict[str, pa.Array] = {
        name: pa.array(given[name], TEXT.field(name).type) for name in (*_AS_THEY_ARE, *_NUMBERS)
    }
    made |= {
        "job": _repeated(job.id, n),
        "stage": pa.array(np.full(n, stage.position, np.int16)),
        "prompt_set": _repeated(job.prompt_set, n),
        "answer": pa.array(given["answer"], pa.string()).fill_null(""),
        "prompt_source": pa.array(given["source"], pa.string()),
        "prompt_license_assumed": _booleans(given["license_assumed"]),
        "reasoning_truncated": _booleans(given["reasoning_truncated"]),
        "tool_calls_json": pa.array(given["tool_calls"], pa.string()),
        "sampling_json": pa.array(given["sampling"], pa.string()).fill_null(stage.sampling_json),
        "generated_at": pa.array((np.array(given["created_at"]) * 1000).astype("datetime64[ms]")),
        "lane": pa.array(given["teacher"], pa.int16()),
        "parent_ids": _parents(given["parent_id"]),
        "split": prompts.expanded(pa.array(SPLITS).take(pa.array(np.array(prompts.split, np.int8)))),
    }
    made["prompt"] = prompts.expanded(pa.array(prompts.prompt, pa.string()))
    made |= {name: prompts.aside(key) for name, key in _ASIDES.items()}
    made["messages"] = prompts.messages(
        {
            "content": made["answer"],
            "reasoning_content": made["reasoning"],
            "tool_calls_json": made["tool_calls_json"],
        }
    )
    made |= {name: _hex(given[source]) for name, source in _HASHES.items()}
    made |= _of_the_lane(job.lanes, np.array(given["teacher"]))
    made["row_id"] = _row_ids(made)
    arrays = [
        made[name] if made[name].type == kind else made[name].cast(kind)
        for name, kind in zip(TEXT.names, TEXT.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=TEXT)


def text_sizes(batch: pa.RecordBatch, rows: Columns) -> NDArray[np.int64]:
    """Bytes that each row's text takes, roughly: the prompt, the answer, and 400 for the rest."""
    sizes = np.fromiter(map(len, rows["body"]), np.int64, batch.num_rows) + 400
    for name in ("answer", "reasoning", "tool_calls_json"):
        length = pc.binary_length(batch.column(name)).fill_null(0)
        sizes += 2 * length.to_numpy(zero_copy_only=False).astype(np.int64)  # once more within the messages
    return sizes


def _repeated(value: str, n: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(n, np.int32)))


def _booleans(values: Sequence[Any]) -> pa.Array:
    return pa.array(np.array(values, np.bool_))


def _row_ids(made: dict[str, pa.Array]) -> pa.Array:
    parts = ("job", "stage", "prompt_number", "lane", "sample_index")
    return pc.binary_join_element_wise(*(made[name].cast(pa.string()) for name in parts), "/")


def _parents(parents: Sequence[str | None]) -> pa.Array:
    there = np.array([parent is not None for parent in parents], np.bool_)
    values = pa.array([parent for parent in parents if parent is not None], pa.string())
    return lists.list_column(values, there.astype(np.int64), TEXT.field("parent_ids").type)


def _hex(values: Sequence[bytes | None]) -> pa.Array:
    """32-byte digests as hexadecimal text."""
    there = pa.array(values, pa.binary(32))
    raw = there.fill_null(bytes(32)).buffers()[1]
    offsets = np.arange(len(values) + 1, dtype=np.int32) * 64
    text = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(hexlify(raw)))
    return pc.if_else(there.is_valid(), text, None) if there.null_count else text


def _of_the_lane(lanes: Sequence[LaneFacts], teacher: NDArray[Any]) -> dict[str, pa.Array]:
    """What is the same for all rows of a teacher."""
    place = {lane.position: i for i, lane in enumerate(lanes)}
    table = np.zeros(max(place, default=0) + 1, np.int32)
    table[list(place)] = list(place.values())
    at = pa.array(table[teacher])
    sources = {
        "teacher": "teacher",
        "teacher_model": "model",
        "teacher_revision": "revision",
        "teacher_access_route": "access_route",
        "teacher_terms": "terms_id",
        "generation_depth": "generation_depth",
        "tokenizer_sha256": "tokenizer_sha256",
        "chat_template_sha256": "chat_template_sha256",
        "vocab_size": "vocab_size",
    }
    return {
        name: pa.array([getattr(lane, field) for lane in lanes], TEXT.field(name).type).take(at)
        for name, field in sources.items()
    }
