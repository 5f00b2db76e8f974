"""Conversations as each trainer of text wants them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from .batches import Row, json_rows, opened, parquet_rows, row, written

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
DIALOGUE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "and 1 more?"},
)
IMAGE = ({"role": "user", "content": '[{"type": "image_url", "image_url": {"url": "data:,"}}]'},)


def rows(**changes: Any) -> list[Row | None]:
    """The same row twice: a file has two batches."""
    one = replace(row(np.random.default_rng(1), 2, 2), **changes)
    return [one, one]


def first(name: str, given: list[Row | None], **options: Any) -> dict[str, Any]:
    content, dropped = written(opened(name, **options), given)
    assert dropped == {}
    found = parquet_rows(content) if content[:4] == b"PAR1" else json_rows(content)
    assert len(found) == 2
    assert found[0] | {"row_id": 0} == found[1] | {"row_id": 0}
    return found[0]


def dropped(name: str, given: list[Row | None], **options: Any) -> dict[str, int]:
    content, found = written(opened(name, **options), given)
    assert not (parquet_rows(content) if content[:4] == b"PAR1" else json_rows(content))
    return found


THOUGHT = {"reasoning": "One and one.", "answer": "2"}
INLINED = "<think>\nOne and one.\n</think>\n\n2"


def test_trl_sft() -> None:
    got = first("trl-sft", rows(messages=DIALOGUE, **THOUGHT))
    assert got == {"messages": [*DIALOGUE, {"role": "assistant", "content": INLINED}]}
    got = first("trl-sft", rows(messages=DIALOGUE, **THOUGHT), reasoning="field", rows="prompt-completion")
    answer = {"role": "assistant", "content": "2", "reasoning_content": "One and one."}
    assert got == {"prompt": list(DIALOGUE), "completion": [answer]}
    got = first("trl-sft", rows(tools=[TOOL], tool_calls=[CALL], answer=""))
    assert got["tools"] == [TOOL]
    assert got["messages"][-1]["tool_calls"] == [CALL]


def test_openai_chat() -> None:
    got = first("openai-chat", rows(messages=DIALOGUE, **THOUGHT))
    assert got == {"messages": [*DIALOGUE, {"role": "assistant", "content": "2"}]}
    got = first("openai-chat", rows(**THOUGHT), reasoning="think")
    assert got["messages"][-1]["content"] == INLINED
    got = first("openai-chat", rows(tools=[TOOL], tool_calls=[CALL], answer=""))
    assert (got["tools"], got["messages"][-1]["tool_calls"]) == ([TOOL], [CALL])
    assert dropped("openai-chat", rows(answer="")) == {"an empty answer": 2}
    assert dropped("openai-chat", rows(messages=IMAGE)) == {"content that is not text": 2}


def test_ms_swift() -> None:
    got = first("ms-swift", rows(messages=DIALOGUE, **THOUGHT))
    assert got == {"messages": [*DIALOGUE, {"role": "assistant", "content": INLINED}]}
    got = first("ms-swift", rows(tools=[TOOL], tool_calls=[CALL], answer=""))
    assert got["messages"][-1] == {"role": "tool_call", "content": '{"name":"add","arguments":{"a":1}}'}
    assert isinstance(got["tools"], str)
    assert dropped("ms-swift", rows(messages=IMAGE)) == {"content that is not text": 2}


def test_llama_factory() -> None:
    got = first("llama-factory", rows(messages=DIALOGUE, **THOUGHT))
    assert got["system"] == "Be brief."
    assert [turn["from"] for turn in got["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert got["conversations"][-1]["value"] == INLINED
    got = first("llama-factory", rows(tools=[TOOL], tool_calls=[CALL], answer=""))
    assert got["conversations"][-1] == {
        "from": "function_call",
        "value": '{"name":"add","arguments":{"a":1}}',
    }
    assert '"name":"add"' in got["tools"]
    twice = ({"role": "user", "content": "a"}, {"role": "user", "content": "b"})
    assert dropped("llama-factory", rows(messages=twice)) == {
        "turns that do not alternate between user and model": 2
    }


def test_verl() -> None:
    got = first("verl", rows(messages=DIALOGUE, **THOUGHT))
    assert [turn["content"] for turn in got["messages"]] == [*(t["content"] for t in DIALOGUE), INLINED]
    assert got["enable_thinking"] is True
    assert first("verl", rows(**THOUGHT), reasoning="drop")["enable_thinking"] is False
    assert first("verl", rows())["enable_thinking"] is False
    assert dropped("verl", rows(tools=[TOOL])) == {"tools, which verl's Parquet has no place for": 2}


@pytest.mark.parametrize("name", ["trl-sft", "openai-chat", "ms-swift", "llama-factory"])
def test_an_answer_that_looks_like_parts_stays_text(name: str) -> None:
    text = '[{"type": "text", "text": "x"}]'
    got = first(name, rows(answer=text))
    last = (got.get("messages") or got["conversations"])[-1]
    assert text in last.values()
