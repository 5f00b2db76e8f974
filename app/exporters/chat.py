"""Conversations as columns: reasoning beside the content, inside it, or left out; the question without its answer."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.domain.reasoning import CLOSE, OPEN
from app.exporters import lists

Reasoning = Literal["field", "think", "drop"]
InText = Literal["think", "drop"]


def chat(batch: pa.RecordBatch, reasoning: Reasoning) -> pa.Array:
    """`messages` with the trace as `reasoning_content`, as `<think>…</think>` before the content, or not at all.

    With `think` and `drop` the turns have no `reasoning_content`. A trace that never closed stays open.
    """
    messages = batch.column("messages")
    if reasoning == "field":
        return messages
    turns = messages.flatten()
    fields = {name: turns.field(name) for name in _names(turns)}
    trace = fields.pop("reasoning_content")
    if reasoning == "think":
        content = fields["content"].fill_null("")
        closed = pc.binary_join_element_wise(f"{OPEN}\n", trace, f"\n{CLOSE}\n\n", content, "")
        cut = pc.binary_join_element_wise(f"{OPEN}\n", trace, "")
        inlined = pc.if_else(_last_and_truncated(batch), cut, closed)
        fields["content"] = pc.if_else(trace.is_valid(), inlined, fields["content"])
    made = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    return lists.list_column(made, lists.lengths(messages), pa.list_(made.type))


def asked(messages: pa.Array) -> pa.Array:
    """All turns but the last one: the prompt of a conversation whose last turn is the answer."""
    counts = lists.lengths(messages)
    kept = np.maximum(counts - 1, 0)
    places = lists.positions(lists.offsets_of(counts)[:-1], kept)
    return lists.list_column(messages.flatten().take(pa.array(places)), kept, messages.type)


def answered(messages: pa.Array) -> pa.Array:
    """The last turn alone, as a list of one."""
    counts = lists.lengths(messages)
    ends = lists.offsets_of(counts)[1:]
    return lists.list_column(
        messages.flatten().take(pa.array(ends - 1)), np.minimum(counts, 1), messages.type
    )


def _names(turns: pa.Array) -> list[str]:
    return [turns.type.field(i).name for i in range(turns.type.num_fields)]


def _last_and_truncated(batch: pa.RecordBatch) -> pa.Array:
    """For every turn of the batch, flat: it is its row's last one and its trace was cut off."""
    ends = lists.offsets_of(lists.lengths(batch.column("messages")))
    found = np.zeros(int(ends[-1]), np.bool_)
    found[ends[1:] - 1] = batch.column("reasoning_truncated").to_numpy(zero_copy_only=False)
    return pa.array(found)
