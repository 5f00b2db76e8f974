"""`slime`: JSON lines with a teacher's scores of the response, as slime's offline distillation reads them.

Response-aligned: row j belongs to response token j. The first line is metadata; then `prompt`, `tokens` (prompt and
response), `response`, `response_length`, `loss_mask` [R], `teacher_log_probs` [R], `teacher_top_k_ids` and
`teacher_top_k_logprobs` [R][K], unnormalised. Source: THUDM/slime, pull request 1654.

    import json
    with open("DIR/train-00000.jsonl") as lines:
        metadata, *rows = map(json.loads, lines)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Final

import numpy as np
import orjson
import pyarrow as pa
from pydantic import Field

from app.exporters import lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.lines import LinesShard
from app.exporters.sequences import check_signal, cut, sequences
from app.exporters.turns import conversations

_NAME: Final = "slime"
_UNSAID: Final = -1e9  # JSON has no −inf and no NaN: masked by `loss_mask`, or an id of −1

SCHEMA: Final = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("tokens", pa.list_(pa.int64())),
        ("response", pa.string()),
        ("response_length", pa.int64()),
        ("loss_mask", pa.list_(pa.int8())),
        ("teacher_log_probs", pa.list_(pa.float32())),
        ("teacher_top_k_ids", pa.list_(pa.list_(pa.int64()))),
        ("teacher_top_k_logprobs", pa.list_(pa.list_(pa.float32()))),
    ]
)


class SlimeOptions(FormatOptions):
    top_k: int | None = Field(
        None, ge=1, le=1024, description="Candidates per position; default: all that are stored."
    )


class SlimeExporter:
    suffix = ".jsonl"
    needs_tokens = True

    def __init__(self, options: SlimeOptions) -> None:
        self._asked = options.top_k
        self._k = options.top_k or 1
        self._teachers: list[dict[str, Any]] = []

    def check(self, bindings: Sequence[Binding]) -> None:
        self._k = check_signal(bindings, self._asked, _NAME)
        self._teachers = [
            {
                "teacher": b.teacher,
                "model": b.model,
                "revision": b.revision,
                "tokenizer_sha256": b.tokenizer_sha256,
            }
            for b in bindings
        ]

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> LinesShard:
        metadata = {
            "type": "metadata",
            "top_k": self._k,
            "alignment": "response",
            "logprobs": "raw, natural, temperature 1, unnormalised over the candidates",
            "teachers": self._teachers,
        }
        file.write(orjson.dumps(metadata, option=orjson.OPT_APPEND_NEWLINE))
        return LinesShard(file, self._lines)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}

    def _lines(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        for part in cut(batch, self._k):
            yield from self._part(part, counted)

    def _part(self, batch: pa.RecordBatch, counted: Counted) -> Iterable[dict[str, Any]]:
        found = sequences(batch, self._k, counted)
        kept = batch.take(pa.array(found.rows))
        turns = conversations(kept, "think")
        tokens, starts = found.input_ids, lists.offsets_of(found.lengths)
        ends = lists.offsets_of(found.n_token)
        own = np.where(np.isfinite(found.sampled_logprob), found.sampled_logprob, _UNSAID).astype(np.float32)
        values = np.where(found.topk_ids >= 0, found.topk_logprobs, _UNSAID).astype(np.float32)
        for row, (row_id, talk) in enumerate(zip(kept.column("row_id").to_pylist(), turns, strict=True)):
            here = slice(int(ends[row]), int(ends[row + 1]))
            yield {
                "row_id": row_id,
                "prompt": [{"role": t["role"], "content": t.get("content") or ""} for t in talk[:-1]],
                "tokens": tokens[starts[row] : starts[row + 1]],
                "response": talk[-1].get("content") or "",
                "response_length": int(found.n_token[row]),
                "loss_mask": found.drawn[here].astype(np.int8),
                "teacher_log_probs": own[here],
                "teacher_top_k_ids": np.ascontiguousarray(found.topk_ids[here]),
                "teacher_top_k_logprobs": np.ascontiguousarray(values[here]),
            }


_HOW_TO_LOAD: Final = """\
import json

with open("DIR/train-00000.jsonl") as lines:
    metadata, *rows = map(json.loads, lines)
"""

FORMAT = Format(
    "A teacher's scores of each response for slime, as JSON lines.",
    SlimeOptions,
    SlimeExporter,
    load=_HOW_TO_LOAD,
)
