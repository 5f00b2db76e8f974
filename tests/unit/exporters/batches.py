"""Batches as an exporter is given them, with every oddity that a row can have, and the files made of them."""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.exporters import Binding, Exporter, exporter
from app.exporters.batch import schema

V = 300
BINDING = Binding(
    job="job_1",
    teacher="t",
    model="m",
    revision=None,
    engine="test 1",
    tokenizer_sha256="aa" * 32,
    chat_template_sha256=None,
    vocab_size=V,
    token_ids=True,
    top_logprobs=6,
)


@dataclass(frozen=True)
class Row:
    """One completion. `logprobs` [T, V] is the whole distribution; the batch holds its `k` likeliest."""

    prompt: list[int]
    tokens: list[int]
    logprobs: np.ndarray[Any, Any]
    drawn: list[bool]
    k: int = 6
    messages: tuple[dict[str, Any], ...] = ({"role": "user", "content": "why?"},)
    answer: str = "because"
    reasoning: str | None = None
    tools: Any = None
    tool_calls: Any = None


def row(rng: np.random.Generator, prompt: int, tokens: int, **changes: Any) -> Row:
    logits = rng.normal(0, 2, (tokens, V))
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    made = Row(
        prompt=rng.integers(0, V, prompt).tolist(),
        tokens=[int(rng.choice(V, p=np.exp(lp))) for lp in logprobs],
        logprobs=logprobs.astype(np.float32),
        drawn=[True] * tokens,
    )
    return replace(made, **changes)


def batch(rows: list[Row | None]) -> pa.RecordBatch:
    """A batch; None is a row whose teacher told no tokens."""
    wanted = schema(True)
    values = [_values(number, one) for number, one in enumerate(rows)]
    return pa.RecordBatch.from_pylist(values, schema=wanted)


def _values(number: int, one: Row | None) -> dict[str, Any]:
    text = one or Row([], [], np.zeros((0, V)), [])
    answer = {
        "role": "assistant",
        "content": text.answer,
        "reasoning_content": text.reasoning,
        "tool_calls_json": None if text.tool_calls is None else orjson.dumps(text.tool_calls).decode(),
    }
    values: dict[str, Any] = {
        "row_id": f"job_1/0/{number}/0/0",
        "split": "train",
        "messages": [*text.messages, answer],
        "prompt": text.messages[-1]["content"],
        "answer": text.answer,
        "reasoning": text.reasoning,
        "reasoning_truncated": False,
        "finish_reason": "stop",
        "tools_json": None if text.tools is None else orjson.dumps(text.tools).decode(),
        "teacher": "t",
        "prompt_number": number,
    }
    if one is None:
        return values
    order = np.argsort(-one.logprobs, axis=1)[:, : one.k]
    top = np.take_along_axis(one.logprobs, order, axis=1)
    ids = order.astype(np.int32)
    for place, drawn in enumerate(one.drawn):
        if not drawn:
            ids[place], top[place] = -1, -np.inf
    own = [
        one.logprobs[i, t] if d else np.nan
        for i, (t, d) in enumerate(zip(one.tokens, one.drawn, strict=True))
    ]
    return values | {
        "prompt_ids": one.prompt,
        "token_ids": one.tokens,
        "sampled": one.drawn,
        "lp_k": one.k,
        "topk_ids": ids.reshape(-1).tolist(),
        "topk_logprobs": top.reshape(-1).tolist(),
        "sampled_logprob": own,
        "sampled_rank": [0] * len(one.tokens),
        "tail_logmass": [0.0] * len(one.tokens),
    }


def opened(name: str, binding: Binding = BINDING, **options: Any) -> Exporter:
    made = exporter(name, options)
    made.check([binding])
    return made


def written(made: Exporter, rows: list[Row | None]) -> tuple[bytes, dict[str, int]]:
    """The bytes of a file of these rows in two batches, and what was dropped."""
    file = io.BytesIO()
    shard = made.open(file, "train")
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        shard.write(batch(part))
    shard.close()
    return file.getvalue(), shard.dropped


def parquet_rows(content: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(content)).to_pylist()
    return found


def json_rows(content: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in content.splitlines()]
