"""Anthropic and Gemini through their own formats: reasoning with signatures, tools, system prompts, stop reasons."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from app.domain.sampling import SamplingParameters
from app.errors import IdentityChanged, InvalidInput, PermanentTeacherError, TeacherRefusedKey, Unsupported
from app.teachers import build
from app.teachers.anthropic_messages import usage_of
from app.teachers.base import Capabilities, GenerateRequest, Generation, Turn, Usage
from tests.contract.stages import ACCESS, Stage, anthropic, gemini

DIALOGUE: tuple[Turn, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
    {"role": "tool", "tool_call_id": "call_1", "content": "windy"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "And this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
        ],
    },
)
HI: Turn = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def claude() -> Iterator[Stage]:
    with anthropic() as stage:
        yield stage


@pytest.fixture
def google() -> Iterator[Stage]:
    with gemini() as stage:
        yield stage


def ask(stage: Stage, text: str = "hello", probed: bool = True, **given: Any) -> Generation:
    sampling = SamplingParameters.model_validate({"max_tokens": 64} | given.pop("sampling", {}))
    messages: tuple[Turn, ...] = ({"role": "user", "content": text},)
    request = replace(GenerateRequest(messages=messages, sampling=sampling), **given)

    async def run() -> Generation:
        teacher = stage.teacher()
        try:
            if probed:
                await teacher.capabilities()
            (made,) = await teacher.generate(request)
            return made
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def probe(stage: Stage) -> Capabilities:
    async def run() -> Capabilities:
        teacher = stage.teacher()
        try:
            return await teacher.capabilities()
        finally:
            await teacher.aclose()

    return asyncio.run(run())


def with_options(stage: Stage, **options: Any) -> Stage:
    return replace(stage, spec=replace(stage.spec, options=options))


# -- Anthropic -------------------------------------------------------------------------------------------------------


def test_claude_is_probed(claude: Stage) -> None:
    found = probe(claude)
    assert (found.served_model, found.max_model_len, found.max_top_logprobs) == (
        "claude-opus-4-20261001",
        200_000,
        0,
    )
    assert found.batch_api
    assert found.problems == ("Anthropic's API gives no logprobs: no soft labels from this teacher",)
    assert found.reasoning_field is None
    assert probe(with_options(claude, thinking={"type": "adaptive"})).reasoning_field == "thinking"


def test_thinking_is_kept_with_its_signature(claude: Stage) -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    made = ask(with_options(claude, thinking=thinking), sampling={"temperature": 0.5})
    assert (made.reasoning, made.reasoning_source, made.finish_reason) == ("Let me see.", "native", "stop")
    assert made.provider_extra is not None
    blocks: Any = made.provider_extra["content"]
    assert [block["type"] for block in blocks] == ["thinking", "redacted_thinking", "text"]
    assert blocks[0]["signature"] == "EqQBCgIYAhIM1gbcDa9GJw=="
    assert made.provider_extra["not_sent"] == ["temperature"]
    sent = claude.state.bodies[-1]
    assert (sent["thinking"], sent["max_tokens"]) == (thinking, 2064), "the budget comes on top"
    # The same blocks go back unchanged in a next turn.
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": "so?"},
    )
    ask(with_options(claude, thinking=thinking), messages=turns)
    assert claude.state.bodies[-1]["messages"][1]["content"] == blocks


def test_a_budget_of_a_prompt_is_a_budget_of_claude(claude: Stage) -> None:
    ask(claude, sampling={"thinking_token_budget": 1500})
    assert claude.state.bodies[-1]["thinking"] == {"type": "enabled", "budget_tokens": 1500}


def test_usage_of_claude_counts_the_cache_in(claude: Stage) -> None:
    made = ask(with_options(claude, thinking={"type": "adaptive"}))
    assert made.usage == Usage(25, 22, 7, 4)
    odd = {
        "input_tokens": 3,
        "cache_creation_input_tokens": "x",
        "cache_read_input_tokens": [],
        "output_tokens": 2,
    }
    assert usage_of(odd) == Usage(3, 2, None, None), "what is no number is not known"


def test_a_claude_without_sampling_parameters_is_found_out(claude: Stage) -> None:
    claude.state.takes_sampling = False
    found = probe(claude)
    assert found.reachable
    assert {"temperature", "top_p", "top_k"} <= set(found.refuses)
    made = ask(claude, sampling={"temperature": 0.7, "seed": 1, "stop": ["x"], "reasoning_effort": "low"})
    assert made.provider_extra is not None
    assert made.provider_extra["not_sent"] == ["seed", "temperature"]
    sent = claude.state.bodies[-1]
    assert (sent["stop_sequences"], sent["output_config"]) == (["x"], {"effort": "low"})


def test_dialogues_with_tools_go_to_claude(claude: Stage) -> None:
    made = ask(claude, messages=DIALOGUE, tools=(TOOL,))
    assert made.finish_reason == "stop"
    sent = claude.state.bodies[-1]
    assert sent["system"] == "Be brief."
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user", "user"]
    use = sent["messages"][1]["content"][1]
    assert use == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
    results = sent["messages"][2]["content"]
    assert [(result["type"], result["content"]) for result in results] == [
        ("tool_result", "18 °C"),
        ("tool_result", "windy"),
    ]
    image = sent["messages"][3]["content"][1]
    assert image["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
    assert sent["tools"][0] == {
        "name": "weather",
        "description": "Of a city.",
        "input_schema": TOOL["function"]["parameters"],
    }


def test_claude_calls_a_tool(claude: Stage) -> None:
    made = ask(claude, "the weather?", tools=(TOOL,))
    assert (made.answer, made.finish_reason) == ("I look it up.", "tool_calls")
    assert made.tool_calls is not None
    function: Any = made.tool_calls[0]["function"]
    assert (function["name"], orjson.loads(function["arguments"])) == ("weather", {"city": "Paris"})


def test_claude_refuses_and_runs_out_and_keeps_to_a_schema(claude: Stage) -> None:
    refused = ask(claude, "the forbidden")
    assert (refused.answer, refused.finish_reason) == ("", "refusal")
    assert refused.provider_extra is not None
    assert refused.provider_extra["stop_details"]
    assert ask(claude, sampling={"max_tokens": 3}).finish_reason == "length"
    assert ask(claude, response_schema={"type": "object"}).answer == '{"answer": 4}'


def test_a_wrong_option_of_claude_is_refused(claude: Stage) -> None:
    wrong: list[dict[str, Any]] = [{"thinking": True}, {"thinkin": {}}]
    for options in wrong:
        with pytest.raises(InvalidInput):
            with_options(claude, **options).teacher()


def test_a_wrong_key(claude: Stage, google: Stage) -> None:
    for stage in (claude, google):
        keyless = replace(stage, spec=replace(stage.spec, secret_ref=None))
        with pytest.raises(TeacherRefusedKey):
            ask(keyless, probed=False)
        assert not probe(keyless).reachable


# -- Gemini ----------------------------------------------------------------------------------------------------------


def test_gemini_is_probed(google: Stage) -> None:
    found = probe(google)
    assert (found.served_model, found.max_model_len, found.max_top_logprobs, found.token_ids) == (
        "gemini-2.5-pro-001",
        1_048_576,
        20,
        True,
    )
    assert (found.reasoning_field, found.batch_api) == ("thought", True)


def test_gemini_with_logprobs_by_text_only_is_refused_soft_labels(google: Stage) -> None:
    google.state.logprobs = "text"
    found = probe(google)
    assert found.max_top_logprobs == 0
    assert "text does not name a token" in found.problems[0]
    with pytest.raises(Unsupported, match="text does not name a token"):
        ask(google, top_logprobs=3)
    google.state.logprobs = "none"
    assert "no logprobs" in probe(google).problems[0]


def test_gemini_without_thoughts_is_found_out(google: Stage) -> None:
    google.state.reasons = False
    assert probe(google).reasoning_field is None
    assert ask(google).reasoning is None
    assert "thinkingConfig" not in google.state.bodies[-1]["generationConfig"]


def test_thoughts_are_told_apart_and_counted_in(google: Stage) -> None:
    made = ask(google, sampling={"thinking_token_budget": 100})
    assert (made.reasoning, made.reasoning_source) == ("**Considering** the question.", "native")
    assert made.usage == Usage(21, 18, 6, 4)
    config = google.state.bodies[-1]["generationConfig"]
    assert config["thinkingConfig"] == {"includeThoughts": True, "thinkingBudget": 100}
    assert config["maxOutputTokens"] == 164


def test_dialogues_with_tools_go_to_gemini(google: Stage) -> None:
    ask(google, messages=DIALOGUE, tools=(TOOL,))
    sent = google.state.bodies[-1]
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert [content["role"] for content in sent["contents"]] == ["user", "model", "user", "user"]
    assert sent["contents"][1]["parts"][1] == {"functionCall": {"name": "weather", "args": {"city": "Paris"}}}
    responses = [part["functionResponse"] for part in sent["contents"][2]["parts"]]
    assert responses == [
        {"name": "weather", "response": {"result": "18 °C"}},
        {"name": "weather", "response": {"result": "windy"}},
    ]
    assert sent["contents"][3]["parts"][1] == {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}}
    declared = sent["tools"][0]["functionDeclarations"][0]
    assert declared["parametersJsonSchema"] == TOOL["function"]["parameters"]


def test_gemini_calls_a_tool_and_its_signature_is_kept(google: Stage) -> None:
    made = ask(google, "the weather?", tools=(TOOL,))
    assert made.finish_reason == "tool_calls"
    assert made.tool_calls is not None
    function: Any = made.tool_calls[0]["function"]
    assert orjson.loads(function["arguments"]) == {"city": "Paris"}
    assert made.provider_extra is not None
    parts: Any = made.provider_extra["content"]
    assert parts[-1]["thoughtSignature"] == "CrkBAVSoXO6f8w=="
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": "so?"},
    )
    ask(google, messages=turns)
    assert google.state.bodies[-1]["contents"][1]["parts"] == parts


def test_gemini_filters_blocks_and_runs_out(google: Stage) -> None:
    assert ask(google, "the forbidden").finish_reason == "content_filter"
    with pytest.raises(PermanentTeacherError, match="PROHIBITED_CONTENT"):
        ask(google, "the blocked")
    assert ask(google, sampling={"max_tokens": 3}).finish_reason == "length"
    assert ask(google, response_schema={"type": "object"}).answer == '{"answer": 4}'


def test_what_gemini_has_no_place_for(google: Stage) -> None:
    turns: tuple[Turn, ...] = ({"role": "user", "content": "a"}, {"role": "system", "content": "b"})
    with pytest.raises(Unsupported, match="role 'system'"):
        ask(google, messages=turns)
    image: Turn = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "https://a.example/b"}}],
    }
    with pytest.raises(Unsupported, match="as data"):
        ask(google, messages=(image,))
    with pytest.raises(InvalidInput, match="is a list"):
        build(replace(google.spec, options={"safety_settings": {}}), ACCESS)


# -- whoever answers is who was probed -------------------------------------------------------------------------------


def test_an_alias_that_leads_to_another_model_is_another_teacher(claude: Stage, google: Stage) -> None:
    async def run(stage: Stage) -> None:
        teacher = stage.teacher()
        request = GenerateRequest(messages=(HI,), sampling=SamplingParameters(max_tokens=64))
        try:
            await teacher.capabilities()
            await teacher.generate(request)
            stage.state.version = "20270102"
            with pytest.raises(IdentityChanged, match=r"20270102|-102"):
                await teacher.generate(request)
            await (
                teacher.capabilities()
            )  # the lane asks again who it is, and compares with what the job began with
            await teacher.generate(request)
        finally:
            await teacher.aclose()

    for stage in (claude, google):
        asyncio.run(run(stage))
