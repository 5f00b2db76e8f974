"""The columns that every exporter is given: a batch of completions, one a row, in a stable order.

A batch is a `pyarrow.RecordBatch` of `TEXT`, and of `TEXT` and `TOKENS` for a format that needs tokens. Strings are
UTF-8; what ends in `_json` is JSON text, null where there is nothing.

Identity
    row_id           job/stage/prompt number/teacher's position/sample index: the completion's key
    parent_ids       list<string>: row ids of the turns before, for a dialogue's later turns
    split            train, validation or test
Text
    messages         list<struct>: the turns as asked, and the answer as the last one; see `MESSAGE`
    prompt           content of the last turn that was asked
    answer, reasoning, tool_calls_json     what the teacher gave; `reasoning` is null where it gave none
    reasoning_source native or elicited
    reasoning_truncated                    the trace never closed
    finish_reason, reference, tools_json, response_schema_json, metadata_json
Provenance
    `PROVENANCE`; `lane` is the teacher's position in its job, `generation_depth` how many generations of students
    that became teachers lie behind it; times are UTC
Tokens, null in a row whose teacher told none (their meaning: `app.domain.columns.TokenColumns`)
    prompt_ids       list<int32>     [P]
    token_ids        list<int32>     [T]     the completion, forced tokens and end token included
    sampled          list<bool>      [T]     False: put there, not drawn
    lp_k             int16           candidates per position
    topk_ids         list<int32>     [T·k]   position by position, likeliest first, −1 where there is none
    topk_logprobs    list<float32>   [T·k]   natural, unnormalised, temperature 1, −inf where there is none
    sampled_logprob  list<float32>   [T]     NaN where forced
    sampled_rank     list<int32>     [T]     1: likeliest, 0: outside the candidates
    tail_logmass     list<float32>   [T]     log(1 − Σ exp(candidates))
    lp_dtype         string          how the candidates' logprobs were rounded: float16, or `steps of 0.015625` (nat)
Row i of the signal is the distribution that token i was drawn from (token-aligned).
"""

from typing import Final

import pyarrow as pa

MESSAGE: Final = pa.struct(
    [
        (name, pa.string())
        for name in ("role", "content", "reasoning_content", "name", "tool_calls_json", "tool_call_id")
    ]
)
"""A turn. Content that is a list of parts is JSON text; `reasoning_content` is the trace that came before it."""

MESSAGES: Final = pa.list_(MESSAGE)

PROVENANCE: Final[dict[str, pa.DataType]] = {
    "job": pa.string(),
    "stage": pa.int16(),
    "prompt_number": pa.int64(),
    "lane": pa.int16(),
    "sample_index": pa.int16(),
    "custom_id": pa.string(),
    "teacher": pa.string(),
    "teacher_model": pa.string(),
    "teacher_revision": pa.string(),
    "teacher_access_route": pa.string(),
    "teacher_license": pa.string(),
    "teacher_terms": pa.string(),
    "generation_depth": pa.int16(),
    "prompt_license": pa.string(),
    "prompt_license_assumed": pa.bool_(),
    "prompt_source": pa.string(),
    "prompt_sha256": pa.string(),
    "prompt_set": pa.string(),
    "sampling_json": pa.string(),
    "engine": pa.string(),
    "tokenizer_sha256": pa.string(),
    "chat_template_sha256": pa.string(),
    "vocab_size": pa.int32(),
    "attempts": pa.int16(),
    "calls": pa.int16(),
    "latency_ms": pa.int32(),
    "prompt_tokens": pa.int32(),
    "completion_tokens": pa.int32(),
    "reasoning_tokens": pa.int32(),
    "request_sha256": pa.string(),
    "response_sha256": pa.string(),
    "content_sha256": pa.string(),
    "generated_at": pa.timestamp("ms", "UTC"),
}

TEXT: Final = pa.schema(
    [
        ("row_id", pa.string()),
        ("parent_ids", pa.list_(pa.string())),
        ("split", pa.string()),
        ("messages", MESSAGES),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("reasoning", pa.string()),
        ("reasoning_source", pa.string()),
        ("reasoning_truncated", pa.bool_()),
        ("tool_calls_json", pa.string()),
        ("finish_reason", pa.string()),
        ("reference", pa.string()),
        ("tools_json", pa.string()),
        ("response_schema_json", pa.string()),
        ("metadata_json", pa.string()),
        *PROVENANCE.items(),
    ]
)

TOKENS: Final = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("sampled", pa.list_(pa.bool_())),
        ("lp_k", pa.int16()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float32())),
        ("sampled_logprob", pa.list_(pa.float32())),
        ("sampled_rank", pa.list_(pa.int32())),
        ("tail_logmass", pa.list_(pa.float32())),
        ("lp_dtype", pa.string()),
    ]
)


def schema(with_tokens: bool) -> pa.Schema:
    """The columns of a batch, in order."""
    return pa.schema([*TEXT, *TOKENS]) if with_tokens else TEXT


def empty(with_tokens: bool) -> pa.RecordBatch:
    """A batch without rows."""
    wanted = schema(with_tokens)
    return pa.RecordBatch.from_arrays([pa.array([], kind) for kind in wanted.types], schema=wanted)
