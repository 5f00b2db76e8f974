"""`llama-factory`: ShareGPT conversations for LLaMA-Factory, with the `dataset_info.json` that names them.

Traces stand inside the content (LLaMA-Factory drops `reasoning_content` unread). Its ShareGPT reader wants the turns of
user and model to alternate, the user's first; conversations that do not are left out and counted, since it would skip
them with a warning. Source: `llamafactory/data/converter.py` of LLaMA-Factory 0.9.5.

    llamafactory-cli train --dataset_dir DIR --dataset retort_train --template … --stage sft …
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import orjson
import pyarrow as pa
from pydantic import Field

from app.exporters import chat
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.lines import LinesShard
from app.exporters.ms_swift import called
from app.exporters.turns import Turn, conversations, is_text, tools_of

_ODD: Final = ("human", "observation")
_EVEN: Final = ("gpt", "function_call")


class LlamaFactoryOptions(FormatOptions):
    reasoning: chat.InText = Field(
        "think", description="`think`: traces as `<think>…</think>` before the answer; `drop`: none."
    )


class LlamaFactoryExporter:
    suffix = ".jsonl"
    needs_tokens = False

    def __init__(self, options: LlamaFactoryOptions) -> None:
        self._options = options

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any conversation that alternates has a place here."""

    def schema(self) -> pa.Schema:
        turn = pa.struct([("from", pa.string()), ("value", pa.string())])
        return pa.schema([("conversations", pa.list_(turn)), ("system", pa.string()), ("tools", pa.string())])

    def open(self, file: IO[bytes], split: str) -> LinesShard:
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        """Its `file_name` names one file; a split of several is one entry a file, all named in `dataset`."""
        columns = {"messages": "conversations", "system": "system", "tools": "tools"}
        found: dict[str, Any] = {}
        for split in summary.splits:
            files = [file.name for file in summary.files if file.split == split]
            for number, name in enumerate(files):
                entry = f"retort_{split}" if len(files) == 1 else f"retort_{split}_{number:05d}"
                found[entry] = {"file_name": name, "formatting": "sharegpt", "columns": columns}
        return {
            "dataset_info.json": orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        }

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        for turns, tools in zip(conversations(batch, self._options.reasoning), tools_of(batch), strict=True):
            if not is_text(turns):
                counted.drop("content that is not text", 1)
                continue
            system = ""
            if turns[0]["role"] in ("system", "developer"):
                system, turns = turns[0].get("content") or "", turns[1:]
            talk = [_sharegpt(turn) for turn in turns]
            if not _alternates(talk):
                counted.drop("turns that do not alternate between user and model", 1)
                continue
            told = "" if tools is None else orjson.dumps([_function(tool) for tool in tools]).decode()
            yield {"conversations": talk, "system": system, "tools": told}


def _sharegpt(turn: Turn) -> dict[str, str]:
    role, content = turn["role"], turn.get("content") or ""
    calls = [called(call) for call in turn.get("tool_calls") or ()]
    if calls:  # it has no turn with both text and calls
        told = calls[0] if len(calls) == 1 else calls
        return {"from": "function_call", "value": orjson.dumps(told).decode()}
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return {"from": str(names.get(role, role)), "value": content}


def _alternates(talk: list[dict[str, str]]) -> bool:
    even = len(talk) % 2 == 0 and len(talk) > 0
    return even and all(turn["from"] in (_EVEN if place % 2 else _ODD) for place, turn in enumerate(talk))


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """`{"name", "description", "parameters"}`, which LLaMA-Factory's templates read."""
    found: dict[str, Any] = tool.get("function") or tool
    return found


_HOW_TO_LOAD: Final = """\
# llamafactory-cli train --dataset_dir DIR --dataset retort_train ...
from datasets import load_dataset

rows = load_dataset("json", data_files="DIR/train-*.jsonl")["train"]
"""

FORMAT = Format(
    "ShareGPT conversations for LLaMA-Factory, with dataset_info.json.",
    LlamaFactoryOptions,
    LlamaFactoryExporter,
    load=_HOW_TO_LOAD,
)
