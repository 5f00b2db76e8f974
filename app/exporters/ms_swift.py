"""`ms-swift`: JSON lines of `messages` for ms-swift, traces inside the content (it drops `reasoning_content` unread).

Tools are JSON text in `tools`; a call is a turn of role `tool_call`, its result one of role `tool_response`.

    swift sft --model … --dataset DIR/train-00000.jsonl
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final

import orjson
import pyarrow as pa
from pydantic import Field

from app.exporters import chat
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.lines import LinesShard
from app.exporters.turns import Turn, conversations, is_text, tools_of


class MsSwiftOptions(FormatOptions):
    reasoning: chat.InText = Field(
        "think", description="`think`: traces as `<think>…</think>` before the answer; `drop`: none."
    )


class MsSwiftExporter:
    suffix = ".jsonl"
    needs_tokens = False

    def __init__(self, options: MsSwiftOptions) -> None:
        self._options = options

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any row of text has a place here."""

    def schema(self) -> pa.Schema:
        turn = pa.struct([("role", pa.string()), ("content", pa.string())])
        return pa.schema([("messages", pa.list_(turn)), ("tools", pa.string())])

    def open(self, file: IO[bytes], split: str) -> LinesShard:
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        for turns, tools in zip(conversations(batch, self._options.reasoning), tools_of(batch), strict=True):
            if not is_text(turns):
                counted.drop("content that is not text", 1)
                continue
            row: dict[str, Any] = {"messages": [made for turn in turns for made in _swift(turn)]}
            yield row if tools is None else {**row, "tools": orjson.dumps(tools).decode()}


def _swift(turn: Turn) -> Iterable[dict[str, str]]:
    """A turn in ms-swift's roles: one that calls tools becomes its text, if any, and a turn for each call."""
    role, content = turn["role"], turn.get("content") or ""
    if role == "tool":
        yield {"role": "tool_response", "content": content}
        return
    calls = turn.get("tool_calls") or ()
    if content or not calls:
        yield {"role": "system" if role == "developer" else role, "content": content}
    for call in calls:
        yield {"role": "tool_call", "content": orjson.dumps(called(call)).decode()}


def called(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call of OpenAI's shape as `{"name", "arguments"}`, arguments decoded where they are JSON."""
    function = call.get("function") or call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(orjson.JSONDecodeError):  # malformed ones stay as the teacher wrote them
            arguments = orjson.loads(arguments)
    return {"name": function.get("name"), "arguments": arguments}


_HOW_TO_LOAD: Final = """\
# swift sft --dataset DIR/train-00000.jsonl ...
from datasets import load_dataset

rows = load_dataset("json", data_files="DIR/train-*.jsonl")["train"]
"""

FORMAT = Format(
    "Messages for ms-swift, traces inside the content, as JSON lines.",
    MsSwiftOptions,
    MsSwiftExporter,
    load=_HOW_TO_LOAD,
)
