"""`verl`: Parquet of `messages` and `enable_thinking` for verl's supervised trainer.

Traces stand inside the content. Parquet has one shape for a column, and tool schemas have many: prompts that offered
tools, and turns that call them, are left out and counted.

    python -m verl.trainer.sft_trainer data.train_files=DIR/train-00000.parquet data.messages_key=messages …
"""

from collections.abc import Mapping, Sequence
from typing import IO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from app.exporters import chat, lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.parquet import ParquetShard

_TURNS: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA: Final = pa.schema([("messages", _TURNS), ("enable_thinking", pa.bool_()), ("row_id", pa.string())])


class VerlOptions(FormatOptions):
    reasoning: chat.InText = Field(
        "think", description="`think`: traces as `<think>…</think>` before the answer; `drop`: none."
    )


class VerlExporter:
    suffix = ".parquet"
    needs_tokens = False

    def __init__(self, options: VerlOptions) -> None:
        self._options = options

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any row of text without tools has a place here."""

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> ParquetShard:
        return ParquetShard(file, SCHEMA, self._rows)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _rows(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        calls = batch.column("messages").flatten().field("tool_calls_json").is_valid()
        counts = lists.lengths(batch.column("messages"))
        owners = np.repeat(np.arange(batch.num_rows), counts)
        calling = np.zeros(batch.num_rows, np.bool_)
        calling[owners[calls.to_numpy(zero_copy_only=False)]] = True
        tooled = calling | lists.validity(batch.column("tools_json"))
        counted.drop("tools, which verl's Parquet has no place for", int(tooled.sum()))
        kept = batch.filter(pa.array(~tooled))
        messages = chat.chat(kept, self._options.reasoning)
        flat = messages.flatten()
        plain = pa.StructArray.from_arrays(
            [flat.field("role"), flat.field("content").fill_null("")], names=["role", "content"]
        )
        thinking = kept.column("reasoning").is_valid()
        if self._options.reasoning == "drop":
            thinking = pc.and_(thinking, False)
        return pa.Table.from_arrays(
            [lists.list_column(plain, lists.lengths(messages), _TURNS), thinking, kept.column("row_id")],
            schema=SCHEMA,
        )


_HOW_TO_LOAD: Final = """\
import pandas

rows = pandas.read_parquet("DIR/train-00000.parquet")  # data.train_files=...
"""

FORMAT = Format(
    "Messages for verl's supervised trainer, as Parquet.",
    VerlOptions,
    VerlExporter,
    load=_HOW_TO_LOAD,
)
