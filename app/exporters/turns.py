"""Conversations as the trainers of text want them: plain dictionaries, nothing empty, tool calls decoded."""

from typing import Any

import orjson
import pyarrow as pa

from app.exporters import chat
from app.exporters.lines import values_of

Turn = dict[str, Any]


def conversations(batch: pa.RecordBatch, reasoning: chat.Reasoning) -> list[list[Turn]]:
    """Each row's turns in OpenAI's shape, the answer last; fields without a value are left out.

    Content that is a list of parts is decoded again. `reasoning`: see `app.exporters.chat.chat`.
    """
    rows = values_of(chat.chat(batch, reasoning))
    return [
        [*(_turn(turn, True) for turn in row[:-1]), *(_turn(turn, False) for turn in row[-1:])]
        for row in rows
    ]


def tools_of(batch: pa.RecordBatch) -> list[list[dict[str, Any]] | None]:
    """The tools that each prompt offered, decoded; None where it offered none."""
    return [None if text is None else orjson.loads(text) for text in values_of(batch.column("tools_json"))]


def is_text(turns: list[Turn]) -> bool:
    """Whether all content is text: no images and the like."""
    return all(isinstance(turn.get("content") or "", str) for turn in turns)


def _turn(turn: Turn, asked: bool) -> Turn:
    made = {name: value for name, value in turn.items() if value is not None}
    calls = made.pop("tool_calls_json", None)
    if calls is not None:
        made["tool_calls"] = orjson.loads(calls)
    content = made.get("content")
    if (
        asked and content is not None and content.startswith("[{")
    ):  # an answer is text, whatever it looks like
        made["content"] = _parts(content)
    return made


def _parts(content: str) -> Any:
    """Parts of a multimodal turn, which are kept as JSON text; text that only looks so stays text."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return content
    return value if all(isinstance(part, dict) and "type" in part for part in value) else content
