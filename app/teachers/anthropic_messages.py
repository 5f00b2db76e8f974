"""Anthropic's Messages: requests out, answers in. Shapes as in its own client, anthropic 2.14."""

from typing import Any

import orjson
from pydantic import JsonValue

from app.errors import MalformedAnswer, Unsupported
from app.teachers.base import GenerateRequest, Generation, Turn, Usage
from app.teachers.content import arguments_of, image_of, text_of
from app.teachers.elicit import instructed

REFUSES = frozenset(
    {
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "chat_template_kwargs",
    }
)
# Newer models take none of these three; the probe finds out.
SAMPLING = ("temperature", "top_p", "top_k")
NO_LOGPROBS = "Anthropic's API gives no logprobs: no soft labels from this teacher"
_DEFAULT_MAX_TOKENS = 4096  # the API wants a number
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
_THOUGHTS = ("thinking", "redacted_thinking")


def message_body(
    model: str,
    request: GenerateRequest,
    thinking: dict[str, Any] | None,
    refused: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request, JSON-ready; sampling parameters that were asked for and are not sent).

    `thinking`: the request's `thinking`, as the API takes it; its budget comes on top of `max_tokens`.
    Raises `Unsupported`.
    """
    if request.top_logprobs:
        raise Unsupported(NO_LOGPROBS)
    messages = request.messages if request.elicit is None else instructed(request.messages, request.elicit)
    given = request.sampling.asked()
    if (budget := given.pop("thinking_token_budget", None)) is not None:
        thinking = {**(thinking or {}), "type": "enabled", "budget_tokens": budget}
    if thinking is not None and thinking.get("type") != "disabled":
        refused = refused | {*SAMPLING}  # a model that thinks takes none of them
    unsent = tuple(sorted(set(given) & (REFUSES | refused)))
    most = int(given.get("max_tokens") or _DEFAULT_MAX_TOKENS)
    if request.elicit is not None:
        most += request.elicit.max_reasoning_tokens
    if thinking is not None:
        most += int(thinking.get("budget_tokens") or 0)
    body: dict[str, Any] = {"model": model, "max_tokens": most}
    system, turns = _turns(messages)
    if system:
        body["system"] = system
    body["messages"] = turns
    body |= {name: given[name] for name in SAMPLING if name in given and name not in unsent}
    if "stop" in given:
        body["stop_sequences"] = given["stop"]
    if thinking is not None:
        body["thinking"] = thinking
    output = {"effort": given.get("reasoning_effort"), "format": _format(request)}
    if any(output.values()):
        body["output_config"] = {name: value for name, value in output.items() if value}
    if request.tools is not None:
        body["tools"] = [_tool(tool) for tool in request.tools]
    return body, unsent


def _format(request: GenerateRequest) -> dict[str, Any] | None:
    schema = request.response_schema
    return None if schema is None else {"type": "json_schema", "schema": schema}


def _turns(messages: tuple[Turn, ...]) -> tuple[str, list[dict[str, Any]]]:
    """(system prompt, the other turns). Answers of tools in a row are one turn of the user."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, content = str(message.get("role")), message.get("content")
        match role:
            case "system" | "developer" if not turns:
                system.append(text_of(content))
            case "tool":
                result = {
                    "type": "tool_result",
                    "tool_use_id": message.get("tool_call_id"),
                    "content": text_of(content),
                }
                if turns and turns[-1]["role"] == "user" and isinstance(turns[-1]["content"], list):
                    turns[-1]["content"].append(result)
                else:
                    turns.append({"role": "user", "content": [result]})
            case "assistant":
                turns.append({"role": "assistant", "content": _assistant(message)})
            case _:
                turns.append({"role": "user" if role == "user" else "system", "content": _blocks(content)})
    return "\n\n".join(system), turns


def _assistant(message: Turn) -> str | list[Any]:
    """What the model said before. A list of blocks goes back as it is: its signatures must not change."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        blocks = [_block(part) for part in content]
    elif isinstance(calls, list):
        blocks = [{"type": "text", "text": content}] if content else []
    else:
        return text_of(content)
    for call in calls if isinstance(calls, list) else ():
        name, arguments = arguments_of(call)
        identifier = call.get("id") if isinstance(call, dict) else None
        blocks.append({"type": "tool_use", "id": identifier, "name": name, "input": arguments})
    return blocks


def _blocks(content: JsonValue) -> str | list[Any]:
    return [_block(part) for part in content] if isinstance(content, list) else text_of(content)


def _block(part: JsonValue) -> JsonValue:
    if not isinstance(part, dict):
        raise Unsupported("a part of a message's content is no object")
    if part.get("type") != "image_url":
        return part
    kind, data = image_of(part)
    if kind is None:
        return {"type": "image", "source": {"type": "url", "url": data}}
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _tool(tool: dict[str, JsonValue]) -> dict[str, JsonValue]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool  # in the API's own shape already
    made: dict[str, JsonValue] = {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return made | {name: function[name] for name in ("description", "strict") if name in function}


def generation(
    answer: Any,
    request: GenerateRequest,
    index: int,
    request_hash: bytes,
    response_hash: bytes,
    unsent: tuple[str, ...] = (),
) -> Generation:
    """The message as a generation. Raises `MalformedAnswer`."""
    content = answer.get("content") if isinstance(answer, dict) else None
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise MalformedAnswer("the answer has no `content` blocks")
    thoughts = [block for block in content if block.get("type") in _THOUGHTS]
    trace = "\n\n".join(str(block["thinking"]) for block in thoughts if block.get("thinking"))
    text = "".join(str(block.get("text", "")) for block in content if block.get("type") == "text")
    stopped = str(answer.get("stop_reason") or "unknown")
    extra: dict[str, JsonValue] = {"id": answer.get("id"), "stop_reason": stopped}
    extra |= {name: answer[name] for name in ("stop_sequence", "stop_details") if answer.get(name)}
    if thoughts:  # with their signatures: a next turn must carry them unchanged
        extra["content"] = content
    if unsent:
        extra["not_sent"] = list(unsent)
    return Generation(
        sample_index=index,
        answer=text,
        reasoning=trace or None,
        reasoning_source="native" if trace else None,
        reasoning_truncated=bool(trace) and stopped == "max_tokens" and not text.strip(),
        finish_reason=_FINISH.get(stopped, stopped),
        tool_calls=_tool_calls(content),
        usage=usage_of(answer.get("usage")),
        engine=None,
        request_hash=request_hash,
        response_hash=response_hash,
        provider_extra=extra,
    )


def _tool_calls(content: list[dict[str, Any]]) -> list[dict[str, JsonValue]] | None:
    """In OpenAI's shape, as every other driver's."""
    calls: list[dict[str, JsonValue]] = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {
                "name": block.get("name"),
                "arguments": orjson.dumps(block.get("input") or {}).decode(),
            },
        }
        for block in content
        if block.get("type") == "tool_use"
    ]
    return calls or None


def usage_of(usage: Any) -> Usage:
    """`input_tokens` leaves out what was read from or written to the cache: here it is counted in."""
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("output_tokens_details")
    thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    fresh, read, written = (usage[name] if isinstance(usage.get(name), int) else None for name in names)
    return Usage(
        prompt_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        completion_tokens=usage["output_tokens"] if isinstance(usage.get("output_tokens"), int) else None,
        reasoning_tokens=thinking if isinstance(thinking, int) else None,
        cached_tokens=read if isinstance(read, int) else None,
    )
