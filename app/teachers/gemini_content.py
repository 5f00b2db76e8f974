"""Gemini's generateContent: requests out, answers in. Shapes as in its own client, google-genai 3.6."""

from typing import Any

import orjson
from pydantic import JsonValue

from app.domain.columns import TokenColumns
from app.errors import MalformedAnswer, PermanentTeacherError, Unsupported
from app.teachers.base import GenerateRequest, Generation, Turn, Usage
from app.teachers.chat_answers import DEGENERATE, FEW_TOKENS, TEXT_ONLY, is_degenerate
from app.teachers.content import arguments_of, image_of, text_of
from app.teachers.elicit import instructed
from app.teachers.token_rows import columns_of_rows

MAX_TOP_LOGPROBS = 20
REFUSES = frozenset({"min_p", "repetition_penalty", "chat_template_kwargs"})
_NAMES = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "stop": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "ESCALATION",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)
_BROKEN = frozenset({"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL"})


def content_body(
    request: GenerateRequest,
    index: int,
    thinking: dict[str, Any] | None,
    safety: list[Any] | None,
    refused: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the request, JSON-ready; sampling parameters that were asked for and are not sent).

    `thinking`: the request's `thinkingConfig`; its budget comes on top of `max_tokens`. Raises `Unsupported`.
    """
    messages = request.messages if request.elicit is None else instructed(request.messages, request.elicit)
    given = request.sampling.for_sample(index).asked()
    if (tokens := given.pop("thinking_token_budget", None)) is not None:
        thinking = {**(thinking or {}), "thinkingBudget": tokens}
    unsent = tuple(sorted(set(given) & (REFUSES | refused)))
    config: dict[str, Any] = {
        theirs: given[ours] for ours, theirs in _NAMES.items() if ours in given and ours not in unsent
    }
    if thinking is not None or "reasoning_effort" in given:
        config["thinkingConfig"] = dict(thinking or {})
        if "reasoning_effort" in given:
            config["thinkingConfig"]["thinkingLevel"] = given["reasoning_effort"]
    if "max_tokens" in given:
        extra = 0 if request.elicit is None else request.elicit.max_reasoning_tokens
        budget = 0 if thinking is None else max(0, int(thinking.get("thinkingBudget") or 0))
        config["maxOutputTokens"] = given["max_tokens"] + extra + budget
    if request.top_logprobs:
        config |= {"responseLogprobs": True, "logprobs": min(request.top_logprobs, MAX_TOP_LOGPROBS)}
    if request.response_schema is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": request.response_schema}
    system, contents = _contents(messages)
    body: dict[str, Any] = {"contents": contents, "generationConfig": config}
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if request.tools is not None:
        body["tools"] = [{"functionDeclarations": [_function(tool) for tool in request.tools]}]
    if safety is not None:
        body["safetySettings"] = safety
    return body, unsent


def _contents(messages: tuple[Turn, ...]) -> tuple[str, list[dict[str, Any]]]:
    """(system prompt, the other turns)."""
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions, by the id of their call
    for message in messages:
        role, content = str(message.get("role")), message.get("content")
        match role:
            case "system" | "developer" if not contents:
                system.append(text_of(content))
            case "tool":
                name = names.get(str(message.get("tool_call_id")), str(message.get("name") or "tool"))
                response = {"functionResponse": {"name": name, "response": {"result": text_of(content)}}}
                if contents and "functionResponse" in contents[-1]["parts"][-1]:
                    contents[-1]["parts"].append(response)
                else:
                    contents.append({"role": "user", "parts": [response]})
            case "assistant":
                contents.append({"role": "model", "parts": _model_parts(message, names)})
            case "user":
                contents.append({"role": "user", "parts": _parts(content)})
            case _:
                raise Unsupported(f"Gemini's API has no place for a message of role {role!r} in the middle")
    return "\n\n".join(system), contents


def _model_parts(message: Turn, names: dict[str, str]) -> list[Any]:
    """What the model said before. A list of parts goes back as it is: its signatures must not change."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = _parts(content) if content else []
    for call in calls if isinstance(calls, list) else ():
        name, arguments = arguments_of(call)
        if isinstance(call, dict):
            names[str(call.get("id"))] = name
        parts.append({"functionCall": {"name": name, "args": arguments}})
    return parts or [{"text": ""}]


def _parts(content: JsonValue) -> list[Any]:
    if not isinstance(content, list):
        return [{"text": text_of(content)}]
    return [_part(part) for part in content]


def _part(part: JsonValue) -> JsonValue:
    if not isinstance(part, dict):
        raise Unsupported("a part of a message's content is no object")
    if part.get("type") == "text":
        return {"text": part.get("text")}
    if part.get("type") != "image_url":
        return part
    kind, data = image_of(part)
    if kind is None:
        raise Unsupported("Gemini's API takes images as data, not by their address")
    return {"inlineData": {"mimeType": kind, "data": data}}


def _function(tool: dict[str, JsonValue]) -> dict[str, JsonValue]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool  # in the API's own shape already
    made: dict[str, JsonValue] = {"name": function.get("name")}
    if "description" in function:
        made["description"] = function["description"]
    if function.get("parameters"):
        made["parametersJsonSchema"] = function["parameters"]
    return made


def generation(
    answer: Any,
    request: GenerateRequest,
    index: int,
    request_hash: bytes,
    response_hash: bytes,
    unsent: tuple[str, ...] = (),
) -> Generation:
    """The first candidate as a generation. Raises `MalformedAnswer`, `PermanentTeacherError` for a blocked prompt."""
    candidate = _candidate(answer)
    stopped = str(candidate.get("finishReason") or "unknown")
    if stopped in _BROKEN:
        raise MalformedAnswer(f"the teacher broke off: {stopped}")
    content = candidate.get("content")
    parts = content.get("parts", []) if isinstance(content, dict) else []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise MalformedAnswer("the answer's parts are no list of objects")
    trace = "".join(str(part.get("text", "")) for part in parts if part.get("thought"))
    text = "".join(str(part.get("text", "")) for part in parts if not part.get("thought"))
    calls = _tool_calls(parts)
    finish = "content_filter" if stopped in _FILTERED else _FINISH.get(stopped, stopped.lower())
    extra: dict[str, JsonValue] = {"id": answer.get("responseId"), "finish_reason": stopped}
    if any("thoughtSignature" in part for part in parts):  # a next turn must carry them unchanged
        extra["content"] = parts
    if unsent:
        extra["not_sent"] = list(unsent)
    columns = _columns(candidate, request.top_logprobs)
    return Generation(
        sample_index=index,
        answer=text,
        reasoning=trace or None,
        reasoning_source="native" if trace else None,
        reasoning_truncated=bool(trace) and finish == "length" and not text.strip(),
        finish_reason="tool_calls" if calls and finish == "stop" else finish,
        tool_calls=calls,
        tokens=columns,
        usage=usage_of(answer.get("usageMetadata")),
        engine=str(answer["modelVersion"]) if answer.get("modelVersion") else None,
        request_hash=request_hash,
        response_hash=response_hash,
        provider_extra=extra,
    )


def _candidate(answer: Any) -> dict[str, Any]:
    candidates = answer.get("candidates") if isinstance(answer, dict) else None
    if isinstance(candidates, list) and candidates and isinstance(candidates[0], dict):
        return candidates[0]
    feedback = answer.get("promptFeedback") if isinstance(answer, dict) else None
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        raise PermanentTeacherError(f"the teacher blocked the prompt: {feedback['blockReason']}")
    raise MalformedAnswer("the answer has no `candidates`")


def _tool_calls(parts: list[dict[str, Any]]) -> list[dict[str, JsonValue]] | None:
    """In OpenAI's shape, as every other driver's. Calls without an id are numbered."""
    found = [part["functionCall"] for part in parts if isinstance(part.get("functionCall"), dict)]
    calls: list[dict[str, JsonValue]] = [
        {
            "id": call.get("id") or f"call_{number}",
            "type": "function",
            "function": {
                "name": call.get("name"),
                "arguments": orjson.dumps(call.get("args") or {}).decode(),
            },
        }
        for number, call in enumerate(found)
    ]
    return calls or None


def usage_of(usage: Any) -> Usage:
    """Thoughts are counted beside the candidates: here they are counted in."""

    def count(name: str) -> int | None:
        value = usage.get(name) if isinstance(usage, dict) else None
        return value if isinstance(value, int) else None

    prompt, made, thoughts = (
        count(name) for name in ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    )
    if made is None and thoughts is not None:  # nothing but thoughts was made
        made = 0
    return Usage(
        prompt_tokens=None if prompt is None else prompt + (count("toolUsePromptTokenCount") or 0),
        completion_tokens=None if made is None else made + (thoughts or 0),
        reasoning_tokens=thoughts,
        cached_tokens=count("cachedContentTokenCount"),
    )


def _columns(candidate: dict[str, Any], k: int) -> TokenColumns | None:
    """Columns of `logprobsResult`; it tells token ids on some models only, and none are guessed."""
    if not k:
        return None
    told = candidate.get("logprobsResult")
    chosen = told.get("chosenCandidates") if isinstance(told, dict) else None
    tops = told.get("topCandidates") if isinstance(told, dict) else None
    if not isinstance(chosen, list) or not isinstance(tops, list):
        raise MalformedAnswer("logprobs were asked for, and the answer has none")
    if len(chosen) != len(tops):
        raise MalformedAnswer(f"the answer has {len(chosen)} tokens and {len(tops)} rows of candidates")
    try:
        if any(one.get("tokenId") is None for one in chosen):
            raise Unsupported(TEXT_ONLY)
        rows = [
            _row(one) | {"top_logprobs": [_row(other) for other in top["candidates"]]}
            for one, top in zip(chosen, tops, strict=True)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedAnswer(f"the answer's logprobs are not in a known shape: {error!r}") from error
    columns = columns_of_rows(rows, None, k)
    if columns is not None and len(columns) >= FEW_TOKENS and is_degenerate(columns):
        raise MalformedAnswer(DEGENERATE)
    return columns


def _row(told: dict[str, Any]) -> dict[str, Any]:
    """A logprob of exactly 0 is left out of the JSON, as every default value is."""
    return {"id": told["tokenId"], "logprob": told.get("logProbability", 0.0)}
