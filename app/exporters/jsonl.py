"""`jsonl`: one completion a line, chat messages and provenance; no token columns.

from datasets import load_dataset
rows = load_dataset("json", data_files="DIR/*.jsonl")["train"]
"""

from collections.abc import Iterator
from typing import IO

import orjson
from pydantic import JsonValue

from app.exporters.base import ExportRow


class JsonlExporter:
    suffix = ".jsonl"
    needs_tokens = False

    def write(self, rows: Iterator[ExportRow], file: IO[bytes]) -> None:
        for row in rows:
            file.write(orjson.dumps(self.line(row), option=orjson.OPT_APPEND_NEWLINE))

    def line(self, row: ExportRow) -> dict[str, JsonValue]:
        # Free-form values are JSON text: a loader that infers one schema for all lines stays calm.
        answer: dict[str, JsonValue] = {
            "role": "assistant",
            "content": row.answer,
            "reasoning_content": row.reasoning,
            "tool_calls_json": _json(row.tool_calls),
        }
        return {
            "row_id": row.row_id,
            "messages": [
                *(
                    {
                        "role": message["role"],
                        "content": text_of(message.get("content")),
                        "reasoning_content": message.get("reasoning_content"),
                        "tool_calls_json": _json(message.get("tool_calls")),
                    }
                    for message in row.messages
                ),
                answer,
            ],
            "prompt": text_of(row.messages[-1].get("content")),
            "answer": row.answer,
            "reasoning": row.reasoning,
            "reasoning_source": row.reasoning_source,
            "reasoning_truncated": row.reasoning_truncated,
            "finish_reason": row.finish_reason,
            "reference": None if row.reference is None else text_of(row.reference),
            "tools_json": _json(row.tools),
            "response_schema_json": _json(row.response_schema),
            "metadata_json": _json(row.metadata),
            **row.provenance,
        }


def text_of(value: JsonValue) -> str | None:
    """A string as it is; anything else as JSON text."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _json(value: JsonValue) -> str | None:
    return None if value is None or value == {} else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
