"""Rows of the database as the columns of a batch (`app.exporters.batch`): a column at a time, not a dict a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import JsonValue

from app.db.export_rows import NAMES
from app.domain.splits import SPLITS, Split
from app.exporters import lists
from app.exporters.batch import MESSAGE, MESSAGES, TEXT
from app.services.export.facts import JobFacts, LaneFacts, StageFacts

_AS_THEY_ARE = (
    "reasoning",
    "reasoning_source",
    "finish_reason",
    "custom_id",
    "engine",
    "prompt_license",
    "teacher_license",
)
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
_HEX = np.frombuffer(b"".join(b"%02x" % i for i in range(256)), np.uint8).reshape(256, 2)


def parsed(rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The prompt of each row; siblings stand next to each other and share theirs."""
    body, number = NAMES.index("body"), NAMES.index("prompt_number")
    found: list[dict[str, Any]] = []
    last: int | None = None
    for row in rows:
        if row[number] == last:
            found.append(found[-1])
        else:
            last = row[number]
            found.append(orjson.loads(row[body]))
    return found


def splits_of(bodies: Sequence[dict[str, Any]], split: Split) -> list[int]:
    """Position in `SPLITS` of each row."""
    if split.trivial:
        return [0] * len(bodies)
    found: list[int] = []
    last: dict[str, Any] | None = None
    for body in bodies:
        found.append(found[-1] if body is last else split.of(body["messages"]))
        last = body
    return found


def text_batch(
    rows: Sequence[Sequence[Any]],
    bodies: Sequence[dict[str, Any]],
    splits: Sequence[int],
    job: JobFacts,
    stage: StageFacts,
) -> pa.RecordBatch:
    """The columns of `TEXT` of these rows, which are of one job and stage."""
    given: dict[str, Sequence[Any]] = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    n = len(rows)
    made: dict[str, pa.Array] = {
        "job": _repeated(job.id, n),
        "stage": pa.array(np.full(n, stage.position, np.int16)),
        "prompt_set": _repeated(job.prompt_set, n),
        "answer": pa.array([answer or "" for answer in given["answer"]], pa.string()),
        "prompt_source": pa.array(given["source"], pa.string()),
        "prompt_license_assumed": _booleans(given["license_assumed"]),
        "reasoning_truncated": _booleans(given["reasoning_truncated"]),
        "tool_calls_json": pa.array(given["tool_calls"], pa.string()),
        "sampling_json": pa.array([own or stage.sampling_json for own in given["sampling"]], pa.string()),
        "generated_at": pa.array((np.array(given["created_at"]) * 1000).astype("datetime64[ms]")),
        "messages": _messages(bodies, given),
        "prompt": pa.array([text_of(body["messages"][-1].get("content")) for body in bodies], pa.string()),
        "reference": pa.array([text_of(body.get("reference")) for body in bodies], pa.string()),
        "split": pa.array(SPLITS).take(pa.array(np.array(splits, np.int8))),
        "lane": pa.array(given["teacher"], pa.int16()),
        "parent_ids": _parents(given["parent_id"]),
    }
    made |= {name: pa.array(given[name], TEXT.field(name).type) for name in (*_AS_THEY_ARE, *_NUMBERS)}
    made |= {name: _hex(given[source]) for name, source in _HASHES.items()}
    made |= {f"{key}_json": _json_column(bodies, key) for key in ("tools", "response_schema", "metadata")}
    made |= _of_the_lane(job.lanes, np.array(given["teacher"]))
    made["row_id"] = _row_ids(made)
    arrays = [made[name].cast(kind) for name, kind in zip(TEXT.names, TEXT.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=TEXT)


def text_of(value: JsonValue) -> str | None:
    """A string as it is; anything else as JSON text."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def text_sizes(batch: pa.RecordBatch, rows: Sequence[Sequence[Any]]) -> NDArray[np.int64]:
    """Bytes that each row's text takes, roughly: the prompt, the answer, and 400 for the rest."""
    body = NAMES.index("body")
    sizes = np.fromiter((len(row[body]) for row in rows), np.int64, len(rows)) + 400
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
    missing = np.array([value is None for value in values], np.bool_)
    raw = np.frombuffer(b"".join(value or bytes(32) for value in values), np.uint8)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * 64
    text = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(_HEX[raw].tobytes()))
    return pc.if_else(pa.array(missing), None, text) if missing.any() else text


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
        "teacher_terms": "terms",
        "tokenizer_sha256": "tokenizer_sha256",
        "chat_template_sha256": "chat_template_sha256",
        "vocab_size": "vocab_size",
    }
    return {
        name: pa.array([getattr(lane, field) for lane in lanes], TEXT.field(name).type).take(at)
        for name, field in sources.items()
    }


def _json_column(bodies: Sequence[dict[str, Any]], key: str) -> pa.Array:
    return pa.array([_json(body[key]) if body.get(key) else None for body in bodies], pa.string())


def _json(value: JsonValue) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _messages(bodies: Sequence[dict[str, Any]], given: dict[str, Sequence[Any]]) -> pa.Array:
    """The turns of each prompt, and the answer after them."""
    columns: dict[str, list[str | None]] = {MESSAGE.field(i).name: [] for i in range(MESSAGE.num_fields)}
    role, content, reasoning, name, calls, call_id = (column.append for column in columns.values())
    counts = np.fromiter((len(body["messages"]) + 1 for body in bodies), np.int64, len(bodies))
    for body, answer, trace, tool_calls in zip(
        bodies, given["answer"], given["reasoning"], given["tool_calls"], strict=True
    ):
        for turn in body["messages"]:
            role(turn["role"])
            content(text_of(turn.get("content")))
            reasoning(turn.get("reasoning_content"))
            name(turn.get("name"))
            calls(_json(turn["tool_calls"]) if turn.get("tool_calls") else None)
            call_id(turn.get("tool_call_id"))
        role("assistant")
        content(answer or "")
        reasoning(trace)
        name(None)
        calls(tool_calls)
        call_id(None)
    turns = pa.StructArray.from_arrays(
        [pa.array(column, pa.string()) for column in columns.values()], names=list(columns)
    )
    return lists.list_column(turns, counts, MESSAGES)
