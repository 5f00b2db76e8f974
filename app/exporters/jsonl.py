"""`jsonl`: one completion a line, chat messages and provenance; no token columns.

from datasets import load_dataset
rows = load_dataset("json", data_files="DIR/*.jsonl")["train"]
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from app.exporters import batch as columns
from app.exporters import chat
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.lines import LinesShard, rows_of

_ROW: Final = ("row_id", "messages")


class JsonlOptions(FormatOptions):
    reasoning: chat.Reasoning = Field(
        "field",
        description="Where the trace goes: `field` (`reasoning_content` beside `content`), `think` "
        "(`<think>…</think>` before the content), or `drop`.",
    )
    columns: Literal["all", "messages"] = Field(
        "all", description="`messages`: `row_id` and the conversation, nothing else."
    )


class JsonlExporter:
    suffix = ".jsonl"
    needs_tokens = False

    def __init__(self, options: JsonlOptions) -> None:
        self._reasoning = options.reasoning
        dropped = () if options.reasoning == "field" else ("reasoning", "reasoning_source")
        self._names = [
            name for name in (columns.TEXT.names if options.columns == "all" else _ROW) if name not in dropped
        ]

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any row has a place here."""

    def schema(self) -> pa.Schema:
        return self._table(columns.empty(self.needs_tokens)).schema

    def open(self, file: IO[bytes], split: str) -> LinesShard:
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        return rows_of(self._table(batch))

    def _table(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        messages = chat.chat(batch, self._reasoning)
        arrays = [messages if name == "messages" else batch.column(name) for name in self._names]
        return pa.RecordBatch.from_arrays(arrays, names=self._names)


_HOW_TO_LOAD: Final = """\
from datasets import load_dataset

rows = load_dataset("json", data_files="DIR/train-*.jsonl")["train"]
"""

FORMAT = Format(
    "Chat messages and provenance, a completion a line; no tokens.",
    JsonlOptions,
    JsonlExporter,
    load=_HOW_TO_LOAD,
)
