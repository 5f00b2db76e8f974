"""The prompts behind a page of rows: parsed once for all siblings, filtered, and laid out as flat columns.

No parsed body outlives its turn in the loop: thousands of live dictionaries keep the garbage collector busier than all
the rest of an export.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import JsonValue

from app.db.export_rows import Columns, Place
from app.domain.metadata_filter import MetadataFilter
from app.domain.splits import Split
from app.exporters import lists
from app.exporters.batch import MESSAGE, MESSAGES

_ASIDES = frozenset({"reference", "tools", "response_schema", "metadata"})
_RARE = ("reasoning_content", "name", "tool_calls_json", "tool_call_id")

Keep = Callable[[Place, int], bool]


def text_of(value: JsonValue) -> str | None:
    """A string as it is; anything else as JSON text."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def json_of(value: JsonValue) -> str | None:
    """JSON text with its keys in order; None for nothing."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode() if value else None


@dataclass(slots=True)
class Prompts:
    """`rows`: those that passed; `of_row`: which prompt each is of. The other lists have an item for each prompt."""

    rows: Columns = field(default_factory=dict)
    of_row: list[int] = field(default_factory=list)
    split: list[int] = field(default_factory=list)  # positions in SPLITS
    prompt: list[str | None] = field(default_factory=list)
    _asides: dict[str, dict[int, str | None]] = field(default_factory=dict)  # key of the body → prompt → text
    _turns: list[int] = field(default_factory=list)  # how many the prompt has
    _role: list[str] = field(default_factory=list)
    _content: list[str | None] = field(default_factory=list)
    _rare: dict[int, dict[str, Any]] = field(default_factory=dict)  # flat position → the turn's other fields

    def add(self, body: dict[str, Any], split: int) -> None:
        """A million times an export: what is rare costs nothing where it is not there."""
        turns = body["messages"]
        content = None
        for turn in turns:
            content = turn.get("content")
            if content.__class__ is not str:
                content = text_of(content)
            if len(turn) > 2 or content is None:
                self._rare[len(self._role)] = {**turn, "tool_calls_json": json_of(turn.get("tool_calls"))}
            self._role.append(turn["role"])
            self._content.append(content)
        if len(body) > 1:
            for key, value in body.items():
                if key in _ASIDES:
                    text = text_of(value) if key == "reference" else json_of(value)
                    self._asides.setdefault(key, {})[len(self.prompt)] = text
        self._turns.append(len(turns))
        self.split.append(split)
        self.prompt.append(content)

    def aside(self, key: str) -> pa.Array:
        """A key of the bodies beside the messages, an item for each row."""
        found = self._asides.get(key)
        if found is None:
            return pa.nulls(len(self.of_row), pa.string())
        texts: list[str | None] = [None] * len(self.prompt)
        for place, text in found.items():
            texts[place] = text
        return self.expanded(pa.array(texts, pa.string()))

    def expanded(self, values: pa.Array) -> pa.Array:
        """Values of the prompts as values of the rows."""
        return (
            values if len(self.of_row) == len(self._turns) else values.take(pa.array(self.of_row, pa.int32()))
        )

    def messages(self, answers: dict[str, pa.Array]) -> pa.Array:
        """The turns of each row's prompt and its answer: `answers` has `content` and the like, an item for each row."""
        n = len(self.of_row)
        role = pa.concat_arrays([pa.array(self._role, pa.string()), pa.array(["assistant"]).take(_zeros(n))])
        columns = {"role": role, "content": self._joined(self._content, answers["content"])}
        for name in _RARE:
            told = answers.get(name)
            if not self._rare and (told is None or told.null_count == n):
                continue  # nobody says anything there
            asked: list[str | None] = [None] * len(self._role)
            for place, turn in self._rare.items():
                asked[place] = turn.get(name)
            columns[name] = self._joined(asked, pa.nulls(n, pa.string()) if told is None else told)
        at = np.array(self.of_row, np.int64)
        turns = np.array(self._turns, np.int64)
        counts, starts = turns[at], lists.offsets_of(turns)[:-1][at]
        ones = np.ones(n, np.int64)
        order = pa.array(
            lists.joined(lists.positions(starts, counts), counts, len(self._role) + np.arange(n), ones)
        )
        empty = pa.nulls(len(order), pa.string())
        fields = [columns[one.name].take(order) if one.name in columns else empty for one in MESSAGE]
        return lists.list_column(
            pa.StructArray.from_arrays(fields, fields=list(MESSAGE)), counts + ones, MESSAGES
        )

    @staticmethod
    def _joined(asked: list[str | None], answers: pa.Array) -> pa.Array:
        return pa.concat_arrays([pa.array(asked, pa.string()), answers])


def _zeros(n: int) -> pa.Array:
    zeros: NDArray[np.int32] = np.zeros(n, np.int32)
    return pa.array(zeros)


def prompts_of(
    rows: Columns, split: Split, conditions: Sequence[MetadataFilter], keep: Keep | None
) -> Prompts:
    """The rows whose prompts pass the conditions and which `keep` (given the row and its split's position) wants."""
    made = Prompts()
    if split.trivial and not conditions and keep is None:  # nothing to ask of a row: most exports
        last, at = -1, -1
        for number, text in zip(rows["prompt_number"], rows["body"], strict=True):
            if number != last:
                last, at = number, at + 1
                made.add(orjson.loads(text), 0)
            made.of_row.append(at)
        made.rows = rows
        return made
    kept = _kept(made, rows, split, conditions, keep)
    made.rows = {name: list(compress(values, kept)) for name, values in rows.items()}
    return made


def _kept(
    made: Prompts, rows: Columns, split: Split, conditions: Sequence[MetadataFilter], keep: Keep | None
) -> list[bool]:
    """Whether each row passes; the prompts of those that do are added."""
    found: list[bool] = []
    last, passes, at, code = -1, False, -1, 0
    body: dict[str, Any] = {}
    places = zip(rows["prompt_number"], rows["teacher"], rows["sample_index"], strict=True)
    for place, text in zip(places, rows["body"], strict=True):
        if place[0] != last:
            last, at = place[0], -1
            body = orjson.loads(text)
            passes = not conditions or all(one.holds(body.get("metadata", {})) for one in conditions)
            code = split.of(body["messages"]) if passes else 0
        found.append(passes and (keep is None or keep(place, code)))
        if found[-1]:
            if at < 0:
                at = len(made.split)
                made.add(body, code)
            made.of_row.append(at)
    return found
