"""`openai-chat`: JSON lines of `messages` as OpenAI's fine-tuning takes them (Together, Fireworks and others, too).

Only text is written, with `tools` and the answer's tool calls; an answer that is empty, and a prompt with images, are
left out and counted. The fine-tuning APIs know no reasoning: it is dropped, or put inside the content.

    client.files.create(file=open("DIR/train-00000.jsonl", "rb"), purpose="fine-tune")
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import pyarrow as pa
from pydantic import Field

from app.exporters import chat
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.lines import LinesShard
from app.exporters.turns import Turn, conversations, is_text, tools_of


class OpenAIChatOptions(FormatOptions):
    reasoning: chat.InText = Field("drop", description="`think` puts the trace into the content.")


class OpenAIChatExporter:
    suffix = ".jsonl"
    needs_tokens = False

    def __init__(self, options: OpenAIChatOptions) -> None:
        self._options = options

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any row of text has a place here."""

    def schema(self) -> pa.Schema:
        turn = pa.struct([("role", pa.string()), ("content", pa.string())])
        return pa.schema([("messages", pa.list_(turn))])

    def open(self, file: IO[bytes], split: str) -> LinesShard:
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        for turns, tools in zip(conversations(batch, self._options.reasoning), tools_of(batch), strict=True):
            answer = turns[-1]
            if not is_text(turns):
                counted.drop("content that is not text", 1)
            elif not answer.get("content") and not answer.get("tool_calls"):
                counted.drop("an empty answer", 1)
            else:
                row: dict[str, Any] = {"messages": [_plain(turn) for turn in turns]}
                yield row if tools is None else {**row, "tools": tools}


def _plain(turn: Turn) -> Turn:
    """Without `reasoning_content`; a developer's turn is the system's."""
    made = {name: value for name, value in turn.items() if name != "reasoning_content"}
    if made["role"] == "developer":
        made["role"] = "system"
    return made


_HOW_TO_LOAD: Final = """\
client.files.create(file=open("DIR/train-00000.jsonl", "rb"), purpose="fine-tune")
"""

FORMAT = Format(
    "Chat messages for OpenAI's fine-tuning API and its relatives, a conversation a line.",
    OpenAIChatOptions,
    OpenAIChatExporter,
    load=_HOW_TO_LOAD,
)
