"""How a line becomes a prompt, and why it does not."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.prompts import MAX_ROW_BYTES, parse_line, parse_value, stored
from app.errors import InvalidInput, InvalidLicense, InvalidRow

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "tool_calls": [{"id": "1"}]}
RESULT = {"role": "tool", "content": "5", "tool_call_id": "1"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ("Hello", [USER]),
        ({"prompt": "Hello"}, [USER]),
        ({"messages": [USER]}, [USER]),
        ({"messages": [SYSTEM, USER]}, [SYSTEM, USER]),
        ({"messages": [CALL, RESULT]}, [CALL, RESULT]),
        ({"messages": [PARTS]}, [PARTS]),
    ],
)
def test_turns(row: Any, turns: list[dict[str, Any]]) -> None:
    assert parse_line(json.dumps(row)).turns() == turns


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"", "not JSON"),
        (b"nothing", "not JSON"),
        (b'{"prompt": "a"} {"prompt": "b"}', "not JSON"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b'{"prompt": NaN}', "not JSON"),
        (b"null", "object or a string, not null"),
        (b"[1]", "object or a string, not a list"),
        (b"1", "object or a string, not a number"),
        (b"true", "object or a string, not true or false"),
        (b'""', "prompt: String should have at least 1 character"),
        (b"{}", "either `prompt` (a string) or `messages`"),
        (b'{"prompt": "a", "messages": []}', "messages"),
        (b'{"prompt": null, "messages": null}', "either `prompt`"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "must be of role 'user' or 'tool'"),
        (b'{"messages": [{"role": "user"}]}', "needs `content`"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages.0.role"),
        (
            b'{"prompt": "a", "licence": "MIT"}',
            "licence: unknown field (put your own fields under `metadata`)",
        ),
        (b'{"prompt": "a", "metadata": []}', "metadata"),
        (b'{"prompt": "a", "parameters": {"temperature": 3}}', "parameters.temperature"),
        (b'{"prompt": "a", "parameters": {"temprature": 1}}', "parameters.temprature: unknown field"),
        (b'{"prompt": "a", "custom_id": 5}', "custom_id"),
        (b'{"prompt": 5}', "prompt: Input should be a valid string"),
        (b"[" * 5000, "not JSON"),
    ],
)
def test_what_does_not_parse_says_where_and_why(line: bytes, told: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        parse_line(line)
    assert told in caught.value.detail


def test_a_row_has_a_bound() -> None:
    head = b'{"prompt": "'
    parse_line(head + b"a" * (MAX_ROW_BYTES - len(head) - 2) + b'"}')
    with pytest.raises(InvalidRow, match="at most 4,194,304"):
        parse_line(head + b"a" * MAX_ROW_BYTES + b'"}')


def test_licences() -> None:
    assert stored(parse_value({"prompt": "a", "license": "cc-by-4.0"}), "MIT").license == "CC-BY-4.0"
    default, none = stored(parse_value("a"), "MIT"), stored(parse_value("a"), None)
    assert (default.license, default.license_assumed) == ("MIT", True)
    assert (none.license, none.license_assumed) == ("NOASSERTION", True)
    with pytest.raises(InvalidLicense):
        stored(parse_value({"prompt": "a", "license": "GPL-17"}), None)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "b"},
        {"license": "MIT"},
        {"source": "b"},
        {"custom_id": "b"},
        {"metadata": {"a": 1}},
        {"reference": 0},
        {"parameters": {"seed": 1}},
        {"tools": []},
        {"response_schema": {}},
        {"teacher": "t"},
    ],
)
def test_the_hash_is_of_everything_that_was_said(change: dict[str, Any]) -> None:
    row = {"prompt": "a", "license": "CC0-1.0", "source": "a", "custom_id": "a"}
    assert (
        stored(parse_value({**row, **change}), None).content_hash
        != stored(parse_value(row), None).content_hash
    )


def test_the_hash_is_of_the_content_and_not_of_its_spelling() -> None:
    one = b'{"prompt": "\\u00e9", "license": "cc0-1.0", "metadata": {"a": 1, "b": [2]}}'
    other = (
        b'{"metadata":{"b":[2],"a":1},"messages":[{"role":"user","content":"\xc3\xa9"}],"license":"CC0-1.0"}'
    )
    assert stored(parse_line(one), None).content_hash == stored(parse_line(other), None).content_hash


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["prompt", "messages", "license", "source", "metadata", "reference", "tools", "x"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=4) | JSON)
def test_any_json_is_a_prompt_or_a_row_error(value: object) -> None:
    try:
        kept = stored(parse_line(json.dumps(value)), None)
    except InvalidInput:
        return
    assert json.loads(kept.body)["messages"]
    assert len(kept.content_hash) == 32


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_a_prompt_or_a_row_error(line: bytes) -> None:
    with suppress(InvalidRow):
        assert parse_line(line).turns()


@given(st.dictionaries(st.text(), JSON, max_size=3), JSON)
def test_metadata_and_reference_come_back_as_they_were(metadata: dict[str, Any], reference: Any) -> None:
    body = json.loads(
        stored(parse_value({"prompt": "a", "metadata": metadata, "reference": reference}), None).body
    )
    assert body.get("metadata", {}) == metadata
    assert body.get("reference") == reference
