"""`trl-sft`: hard labels for TRL's `SFTTrainer`: conversations, prompt and completion, or token ids.

`rows: messages` and `prompt-completion` are JSON lines of text, with `tools` where the prompt offered some; `tokens` is
Parquet of `input_ids` and `labels`: the teacher's very ids, the prompt masked with −100, so nothing is tokenised anew.

    from datasets import load_dataset
    rows = load_dataset("json", data_files="DIR/train-*.jsonl")["train"]      # messages, prompt-completion
    rows = load_dataset("parquet", data_files="DIR/train-*.parquet")["train"]  # tokens
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from app.exporters import chat, lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Shard, Summary
from app.exporters.lines import LinesShard
from app.exporters.parquet import ParquetShard
from app.exporters.sequences import check_ids, sequences
from app.exporters.turns import conversations, tools_of

_NAME: Final = "trl-sft"
_TURNS: Final = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
)
_TOKENS: Final = pa.schema(
    [
        ("input_ids", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.int64())),
        ("attention_mask", pa.list_(pa.int8())),
    ]
)


class SftOptions(FormatOptions):
    rows: Literal["messages", "prompt-completion", "tokens"] = Field(
        "messages", description="`messages`, `prompt` and `completion`, or `input_ids` and `labels`."
    )
    reasoning: chat.Reasoning = Field(
        "think",
        description="`think`: inside the content; `field`: `reasoning_content`, for templates that read it.",
    )


class SftExporter:
    def __init__(self, options: SftOptions) -> None:
        self._options = options
        self.needs_tokens = options.rows == "tokens"
        self.suffix = ".parquet" if self.needs_tokens else ".jsonl"

    def check(self, bindings: Sequence[Binding]) -> None:
        if self.needs_tokens:
            check_ids(bindings, _NAME)

    def schema(self) -> pa.Schema:
        match self._options.rows:
            case "tokens":
                return _TOKENS
            case "messages":
                return pa.schema([("messages", _TURNS)])
        return pa.schema([("prompt", _TURNS), ("completion", _TURNS)])

    def open(self, file: IO[bytes], split: str) -> Shard:
        if self.needs_tokens:
            return ParquetShard(file, _TOKENS, self._tokens)
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        for turns, tools in zip(conversations(batch, self._options.reasoning), tools_of(batch), strict=True):
            row: dict[str, Any] = {"messages": turns}
            if self._options.rows == "prompt-completion":
                row = {"prompt": turns[:-1], "completion": turns[-1:]}
            yield row if tools is None else {**row, "tools": tools}

    def _tokens(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        found = sequences(batch, 0, counted)
        n, kind = found.lengths, pa.list_(pa.int64())
        ones = lists.list_column(found.input_ids * 0 + 1, n, pa.list_(pa.int8()))
        return pa.Table.from_arrays(
            [lists.list_column(found.input_ids, n, kind), lists.list_column(found.labels(), n, kind), ones],
            schema=_TOKENS,
        )


_HOW_TO_LOAD: Final = """\
from datasets import load_dataset

rows = load_dataset("DIR", split="train")  # SFTTrainer(train_dataset=rows, ...)
"""

FORMAT = Format(
    "Hard labels for TRL's SFTTrainer: text, or the teacher's token ids.",
    SftOptions,
    SftExporter,
    load=_HOW_TO_LOAD,
)
