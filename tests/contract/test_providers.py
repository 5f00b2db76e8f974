"""What OpenAI-compatible providers do differently, each in the shape that its own client or server documents."""

import asyncio
import base64
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from pydantic import JsonValue

from app.domain.sampling import Elicitation, SamplingParameters
from app.domain.teacher import TeacherSpec
from app.errors import (
    IdentityChanged,
    InvalidInput,
    MalformedAnswer,
    Overloaded,
    PermanentTeacherError,
    RateLimited,
    TeacherError,
    TeacherRefusedKey,
    TeacherUnavailable,
    TransientTeacherError,
    Unsupported,
)
from app.teachers import build
from app.teachers.base import Capabilities, GenerateRequest, Generation, Usage
from app.teachers.providers import PROVIDERS
from tests.contract.stages import ACCESS
from tests.fixtures.loopback import serving

Json = dict[str, Any]
Answer = Callable[[Json], tuple[int, Json]]


class Provider:
    """A provider's server: `answer` makes each reply, `bodies` is what it was sent."""

    def __init__(self, name: str, answer: Answer, others: dict[str, Json] | None = None) -> None:
        self.name = name
        self.answer = answer
        self.others = others or {}
        self.bodies: list[Json] = []

    def _application(self) -> web.Application:
        async def chat(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            self.bodies.append(body)
            status, answer = self.answer(body)
            return web.json_response(answer, status=status)

        async def other(request: web.Request) -> web.StreamResponse:
            found = self.others.get(request.path)
            return web.json_response(
                found if found is not None else {}, status=200 if found is not None else 404
            )

        made = web.Application()
        made.router.add_post("/v1/chat/completions", chat)
        made.router.add_get("/{path:.*}", other)
        return made

    def _run(self, work: Any) -> Any:
        async def run(url: str) -> Any:
            spec = TeacherSpec("t", "openai", "m", base_url=f"{url}/v1", options={"provider": self.name})
            teacher = build(spec, ACCESS)
            try:
                return await work(teacher)
            finally:
                await teacher.aclose()

        with serving(self._application) as url:
            return asyncio.run(run(url))

    def probe(self) -> Capabilities:
        found: Capabilities = self._run(lambda teacher: teacher.capabilities())
        return found

    def ask(self, probed: bool = False, **given: Any) -> Generation:
        sampling = given.pop("sampling", {})
        request = GenerateRequest(
            messages=({"role": "user", "content": "hello"},),
            sampling=SamplingParameters.model_validate({"temperature": None, "max_tokens": 64} | sampling),
            **given,
        )

        async def work(teacher: Any) -> Generation:
            if probed:
                await teacher.capabilities()
            (made,) = await teacher.generate(request)
            return made  # type: ignore[no-any-return]

        found: Generation = self._run(work)
        return found


def completion(message: Json | None = None, finish: str = "stop", **more: Any) -> Json:
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": "four"} | (message or {}),
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    answer: Json = {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice | more.pop("choice", {})],
        "usage": usage,
    }  # fmt: skip
    return answer | more


def always(answer: Json, status: int = 200) -> Answer:
    return lambda body: (status, answer)


# -- OpenAI ----------------------------------------------------------------------------------------------------------


def reasoning_model(body: Json) -> tuple[int, Json]:
    """o4-mini and its like: no sampling parameters, no logprobs, reasoning that is counted and not told."""
    if "temperature" in body:
        message = "Unsupported value: 'temperature' does not support 0.7 with this model."
        error = {"message": message, "type": "invalid_request_error", "param": "temperature"}
        return 400, {"error": error | {"code": "unsupported_value"}}
    if body.get("logprobs"):
        message = "You are not allowed to request logprobs from this model"
        return 403, {
            "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        }
    if "max_tokens" in body:
        return 400, {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}
    usage = {
        "prompt_tokens": 10, "completion_tokens": 80, "total_tokens": 90,
        "completion_tokens_details": {"reasoning_tokens": 64, "accepted_prediction_tokens": 0},
        "prompt_tokens_details": {"cached_tokens": 8},
    }  # fmt: skip
    return 200, completion(usage=usage, model="o4-mini-2025-04-16")


def test_a_reasoning_model_of_openai() -> None:
    provider = Provider("openai", reasoning_model, {"/v1/batches": {"data": []}})
    found = provider.probe()
    assert found.reachable, found.problems
    assert (found.max_top_logprobs, found.token_ids, found.reasoning_field) == (0, False, None)
    assert found.served_model == "o4-mini-2025-04-16"
    assert "temperature" in found.refuses
    assert found.batch_api
    assert "no logprobs" in found.problems[0]
    assert "does not tell what" in found.problems[1]
    assert len(provider.bodies) < 6, "a refusal of logprobs is not asked for ten times"
    made = provider.ask(probed=True, sampling={"temperature": 0.7, "reasoning_effort": "high"})
    assert made.usage == Usage(10, 80, 64, 8)
    assert made.provider_extra == {"id": "chatcmpl-1", "not_sent": ["temperature"]}
    sent = provider.bodies[-1]
    assert (sent["max_completion_tokens"], sent["reasoning_effort"]) == (64, "high")
    assert "temperature" not in sent


def test_a_refused_key_is_told_from_refused_logprobs() -> None:
    refused = always(
        {"error": {"message": "Incorrect API key provided: sk-1", "code": "invalid_api_key"}}, 401
    )
    found = Provider("openai", refused).probe()
    assert (found.reachable, len(found.problems)) == (False, 1)
    assert "sk-1" not in found.problems[0]


def test_text_is_no_token() -> None:
    """OpenAI tells candidates by their text: soft labels are refused, with the reason."""
    row = {
        "token": "four",
        "logprob": -0.1,
        "bytes": [102],
        "top_logprobs": [{"token": "four", "logprob": -0.1}],
    }
    provider = Provider(
        "openai", always(completion(choice={"logprobs": {"content": [row], "refusal": None}}))
    )
    found = provider.probe()
    assert (found.max_top_logprobs, found.token_ids) == (0, False)
    assert "text does not name a token" in found.problems[0]
    with pytest.raises(Unsupported, match="text does not name a token"):
        provider.ask(top_logprobs=5)


def test_a_refusal_is_a_finish_of_its_own() -> None:
    made = Provider(
        "openai", always(completion({"content": None, "refusal": "I can't help with that."}))
    ).ask()
    assert (made.answer, made.finish_reason) == ("I can't help with that.", "refusal")


def test_tools_and_schemas() -> None:
    call: dict[str, JsonValue] = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }
    tool: dict[str, JsonValue] = {"type": "function", "function": {"name": "weather"}}
    provider = Provider("openai", always(completion({"content": None, "tool_calls": [call]}, "tool_calls")))
    made = provider.ask(tools=(tool,), response_schema={"type": "object"})
    assert (made.answer, made.finish_reason, made.tool_calls) == ("", "tool_calls", [call])
    assert provider.bodies[0]["tools"] == [tool]
    assert provider.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    broken = Provider("openai", always(completion({"tool_calls": "weather"})))
    with pytest.raises(MalformedAnswer):
        broken.ask()


@pytest.mark.parametrize(
    ("status", "error", "ours"),
    [
        (
            429,
            {"code": "insufficient_quota", "message": "You exceeded your current quota"},
            TeacherRefusedKey,
        ),
        (429, {"code": "rate_limit_exceeded", "message": "slow down"}, RateLimited),
        (402, {"message": "Insufficient Balance"}, TeacherRefusedKey),
        (529, {"type": "overloaded_error", "message": "Overloaded"}, Overloaded),
    ],
)
def test_what_a_status_means(status: int, error: Json, ours: type[TeacherError]) -> None:
    with pytest.raises(TeacherError) as raised:
        Provider("openai", always({"error": error}, status)).ask()
    assert type(raised.value) is ours


# -- the others ------------------------------------------------------------------------------------------------------


def test_deepseek() -> None:
    usage = {
        "prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60,
        "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6,
        "completion_tokens_details": {"reasoning_tokens": 40},
    }  # fmt: skip
    provider = Provider("deepseek", always(completion({"reasoning_content": "2 + 2."}, usage=usage)))
    made = provider.ask(sampling={"seed": 3, "top_k": 5})
    assert (made.reasoning, made.reasoning_source, made.answer) == ("2 + 2.", "native", "four")
    assert made.usage == Usage(10, 50, 40, 4)
    assert made.provider_extra == {"id": "chatcmpl-1", "not_sent": ["top_k", "seed"]}
    assert set(provider.bodies[0]) == {"model", "messages", "max_tokens"}
    with pytest.raises(Unsupported, match="no response schema"):
        provider.ask(response_schema={"type": "object"})


def test_only_zeros_are_no_distribution() -> None:
    top = [{"id": 7, "token": "a", "logprob": 0.0}, {"id": 8, "token": "b", "logprob": -9999.0}]
    row = {"id": 7, "token": "a", "logprob": 0.0, "top_logprobs": top}
    provider = Provider("deepseek", always(completion(choice={"logprobs": {"content": [row] * 9}})))
    found = provider.probe()
    assert found.max_top_logprobs == 0
    assert "only 0 and −9999" in found.problems[0]
    with pytest.raises(MalformedAnswer, match="no distribution"):
        provider.ask(top_logprobs=2)


def test_mistral() -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2."}], "signature": "s1"},
        {"type": "text", "text": "four"},
    ]
    provider = Provider("mistral", always(completion({"content": content})))
    made = provider.ask(sampling={"seed": 3})
    assert (made.reasoning, made.answer) == ("2 + 2.", "four")
    assert made.provider_extra is not None
    assert made.provider_extra["content"] == content, "with its signature"
    assert provider.bodies[0]["random_seed"] == 3
    assert provider.probe().reasoning_field == "content[].thinking"


def test_openrouter() -> None:
    details = [{"type": "reasoning.encrypted", "data": "abc", "format": "anthropic-claude-v1"}]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost": 0.000123}
    message = {"reasoning": "2 + 2.", "reasoning_details": details}
    provider = Provider("openrouter", always(completion(message, usage=usage, provider="Fireworks")))
    made = provider.ask(sampling={"reasoning_effort": "low"})
    assert (made.reasoning, made.usage.cost_usd) == ("2 + 2.", Decimal("0.000123"))
    assert made.provider_extra == {
        "id": "chatcmpl-1",
        "provider": "Fireworks",
        "reasoning_details": details,
    }
    assert provider.bodies[0]["reasoning"] == {"effort": "low"}
    assert provider.bodies[0]["usage"] == {"include": True}


@pytest.mark.parametrize(
    ("answer", "ours"),
    [
        ({"error": {"code": 429, "message": "rate-limited upstream"}}, RateLimited),
        ({"error": {"code": 502, "message": "bad gateway"}}, TransientTeacherError),
        ({"error": {"message": "no code"}}, TransientTeacherError),
        (
            completion(finish="error", choice={"error": {"code": 502, "message": "gone"}}),
            TransientTeacherError,
        ),
        (completion(finish="abort"), TransientTeacherError),
        ({"choices": ["four"]}, MalformedAnswer),
        ({"choices": [{"index": 5, "message": {}}]}, MalformedAnswer),
        ({"choices": [{"index": 0}]}, MalformedAnswer),
        (["four"], MalformedAnswer),
    ],
)
def test_an_error_inside_an_answer_of_200(answer: Any, ours: type[TeacherError]) -> None:
    with pytest.raises(TeacherError) as raised:
        Provider("openrouter", always(answer)).ask()
    assert type(raised.value) is ours


@pytest.mark.parametrize("rows", [[7], [None], [[]], [{"token": 7, "logprob": []}]])
def test_logprobs_of_no_known_shape(rows: Any) -> None:
    provider = Provider("vllm", always(completion(choice={"logprobs": {"content": rows}})))
    with pytest.raises(MalformedAnswer):
        provider.ask(top_logprobs=2)
    found = provider.probe()
    assert (found.reachable, found.max_top_logprobs, len(found.problems)) == (True, 0, 1)


def test_a_finish_reason_of_no_known_shape_is_kept_as_it_is() -> None:
    assert (
        Provider("generic", always(completion(choice={"finish_reason": ["odd"]}))).ask().finish_reason
        == "['odd']"
    )


def test_xai_counts_reasoning_beside_the_answer() -> None:
    usage = {
        "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
        "completion_tokens_details": {"reasoning_tokens": 94},
    }  # fmt: skip
    assert Provider("xai", always(completion(usage=usage))).ask().usage == Usage(32, 103, 94)


def test_groq_is_not_asked_for_logprobs() -> None:
    provider = Provider("groq", always(completion({"reasoning": "2 + 2."})))
    found = provider.probe()
    assert (found.max_top_logprobs, found.reasoning_field, found.native_n) == (0, "reasoning", False)
    assert not any("logprobs" in body for body in provider.bodies)


def test_together_tells_candidates_by_their_text() -> None:
    logprobs = {
        "tokens": ["four"],
        "token_ids": [7.0],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"four": -0.1}],
    }
    provider = Provider("together", always(completion(choice={"logprobs": logprobs})))
    found = provider.probe()
    assert found.max_top_logprobs == 0
    assert "text does not name a token" in found.problems[0]
    assert provider.bodies[0]["logprobs"] == 20


def test_fireworks_tells_ids() -> None:
    rows = [
        {
            "token": f"t{i}", "token_id": i, "logprob": -0.5, "sampling_logprob": None, "text_offset": 0,
            "top_logprobs": [{"token": f"t{j}", "token_id": j, "logprob": -0.5 - (j - i)} for j in range(i, i + 5)],
        }
        for i in range(3)
    ]  # fmt: skip
    provider = Provider("fireworks", always(completion(choice={"logprobs": {"content": rows}})))
    assert provider.probe().max_top_logprobs == 5
    made = provider.ask(top_logprobs=5)
    assert made.tokens is not None
    assert made.tokens.token_ids.tolist() == [0, 1, 2]
    assert made.tokens.topk_ids[2].tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("flat", [True, False])
def test_sglang_tells_ids_in_its_meta_info(flat: bool) -> None:
    ids = np.array([[7, 8], [9, 7]], "<i4")
    values = np.array([[-0.25, -2.0], [-0.5, -3.0]], "<f4")
    meta: Json = {"id": "r", "output_token_logprobs": [[-0.25, 7, None], [-3.0, 7, None]]}
    if flat:
        meta |= {
            "output_top_logprobs_idx_flat_b64": base64.b64encode(ids.tobytes()).decode(),
            "output_top_logprobs_val_flat_b64": base64.b64encode(values.tobytes()).decode(),
            "output_top_logprobs_shape": [2, 2],
            "output_top_logprobs_null_prefix": 0,
        }
    else:
        rows = [
            [[float(v), int(i), None] for v, i in zip(*row, strict=True)]
            for row in zip(values, ids, strict=True)
        ]
        meta["output_top_logprobs"] = rows
    choice = {
        "meta_info": meta,
        "response_token_ids": [7, 7],
        "prompt_token_ids": [1, 2, 3],
        "logprobs": {"content": []},
    }
    others: dict[str, Json] = {
        "/server_info": {"version": "0.5.23"},
        "/v1/models": {"data": [{"id": "m", "max_model_len": 4096}]},
    }
    provider = Provider("sglang", always(completion({"reasoning_content": "2 + 2."}, choice=choice)), others)
    found = provider.probe()
    assert (found.engine, found.max_model_len, found.max_top_logprobs) == ("sglang 0.5.23", 4096, 2)
    assert found.prompt_token_ids
    made = provider.ask(top_logprobs=2)
    assert made.tokens is not None
    assert made.tokens.topk_ids.tolist() == ids.tolist()
    assert made.tokens.topk_logprobs.tolist() == values.tolist()
    assert made.tokens.sampled_rank.tolist() == [1, 2]
    assert made.tokens.prompt_ids.tolist() == [1, 2, 3]
    sent = provider.bodies[-1]
    assert sent["return_meta_info"]
    assert sent["return_flat_raw_output_top_logprobs"]


def test_llama_cpp_tells_its_build_and_template() -> None:
    others: dict[str, Json] = {"/props": {"build_info": "b7001-abc", "chat_template": "{{ messages }}"}}
    found = Provider("llama.cpp", always(completion()), others).probe()
    assert found.engine == "llama.cpp b7001-abc"
    assert found.chat_template_sha256 is not None


def test_a_trace_in_the_text() -> None:
    provider = Provider("generic", always(completion({"content": "<think>\n2 + 2.\n</think>\n\nfour"})))
    made = provider.ask()
    assert (made.reasoning, made.answer) == ("2 + 2.", "four")
    assert provider.probe().reasoning_field == "<think>"
    cut = Provider("generic", always(completion({"content": "<think>\n2 + "}, "length"))).ask()
    assert (cut.reasoning, cut.answer, cut.reasoning_truncated) == ("2 + ", "", True)


def test_a_trace_is_drawn_out_by_asking() -> None:
    provider = Provider("openai", always(completion({"content": "First add.</think>four"})))
    made = provider.ask(elicit=Elicitation(max_reasoning_tokens=100))
    assert (made.reasoning, made.reasoning_source, made.answer) == ("First add.", "elicited", "four")
    sent = provider.bodies[0]
    assert sent["messages"][0]["role"] == "system"
    assert sent["max_completion_tokens"] == 164, "the trace has tokens of its own"


def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    missing = always({"error": {"message": "The model `m` does not exist.", "code": 404}}, 404)
    found = Provider("vllm", missing, {"/v1/models": {"data": [{"id": "other"}]}}).probe()
    assert found.problems[0] == "the server has no model 'm'; it has: other"


def test_an_unknown_provider_is_told_the_known_ones() -> None:
    spec = TeacherSpec("t", "openai", "m", base_url="http://127.0.0.1/v1", options={"provider": "opneai"})
    with pytest.raises(InvalidInput, match="openrouter"):
        build(spec, ACCESS)


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
def test_every_hosted_provider_has_an_address_and_prices(provider: Any) -> None:
    assert (provider.base_url is not None) == provider.hosted == (provider.prices is not None)


@pytest.mark.parametrize("sampled", [2, 9])
def test_one_more_is_asked_for_where_the_sampled_token_eats_a_candidate(sampled: int) -> None:
    """vLLM's chat gives the first k of {sampled, top 1 … top k}, and in no order that one could build on."""
    top = {1: -0.3, 2: -1.7, 3: -3.0, 4: -4.5, 5: -6.0, 9: -8.0}

    def answer(body: Json) -> tuple[int, Json]:
        if not body.get("logprobs"):
            return 200, completion()
        ids = [sampled, *(one for one in top if one not in (sampled, 9))][: body["top_logprobs"]]
        listed = [{"token": f"token_id:{one}", "logprob": top[one]} for one in ids]
        rows = [{"token": f"token_id:{sampled}", "logprob": top[sampled], "top_logprobs": listed}] * 3
        return 200, completion(choice={"logprobs": {"content": rows}, "token_ids": [sampled] * 3})

    provider = Provider("vllm", answer)
    made = provider.ask(top_logprobs=3)
    assert provider.bodies[0]["top_logprobs"] == 4
    assert made.tokens is not None
    assert made.tokens.topk_ids.tolist() == [[1, 2, 3]] * 3
    assert made.tokens.topk_logprobs[0].tolist() == pytest.approx([-0.3, -1.7, -3.0])
    assert made.tokens.sampled_logprob.tolist() == pytest.approx([top[sampled]] * 3)
    assert made.tokens.sampled_rank.tolist() == [{2: 2, 9: 0}[sampled]] * 3


# -- whoever answers is who was probed -------------------------------------------------------------------------------


def asked_again(provider: Provider, change: Callable[[], None]) -> Generation:
    """The answer after `change`, by a teacher that was probed and has answered before it."""
    request = GenerateRequest(
        messages=({"role": "user", "content": "hello"},), sampling=SamplingParameters(max_tokens=8)
    )

    async def work(teacher: Any) -> Generation:
        await teacher.capabilities()
        await teacher.generate(request)
        change()
        (made,) = await teacher.generate(request)
        (made,) = await teacher.generate(request)
        return made  # type: ignore[no-any-return]

    found: Generation = provider._run(work)
    return found


@pytest.mark.parametrize("name", ["openai", "generic"])
def test_an_alias_that_leads_to_another_model_is_another_teacher(name: str) -> None:
    provider = Provider(name, always(completion(model="m-2026-01")))

    def change() -> None:
        provider.answer = always(completion(model="m-2026-06"))

    with pytest.raises(IdentityChanged, match=r"'m-2026-06'.*'m-2026-01'"):
        asked_again(provider, change)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_another_fingerprint_is_looked_at_once(version: str) -> None:
    """Another one of the same version may be another configuration; another version is another teacher."""
    others: dict[str, Json] = {"/version": {"version": "1.0"}}
    provider = Provider("vllm", always(completion(system_fingerprint="vllm-a")), others)
    asked: list[int] = []

    def change() -> None:
        provider.answer = always(completion(system_fingerprint="vllm-b"))
        others["/version"] = {"version": version}
        asked.append(len(provider.bodies))

    if version == "1.0":
        asked_again(provider, change)
        probe = asked[0] - 1
        assert len(provider.bodies) - asked[0] <= 2 + probe, "two answers, and one probe at the most"
    else:
        with pytest.raises(IdentityChanged, match=r"vllm 1\.1"):
            asked_again(provider, change)


def test_a_hosted_providers_fingerprints_say_nothing() -> None:
    provider = Provider("openai", always(completion(system_fingerprint="fp_1")))

    def change() -> None:
        provider.answer = always(completion(system_fingerprint="fp_2"))

    assert asked_again(provider, change).engine == "fp_2"


def test_a_model_that_is_gone_is_no_fault_of_the_prompt() -> None:
    gone = always({"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, 404)
    with pytest.raises(TeacherUnavailable, match="does not exist"):
        Provider("openai", gone).ask()
    nobody = always({"error": {"message": "No endpoints found that support image input", "code": 404}}, 404)
    with pytest.raises(PermanentTeacherError) as raised:  # it is the prompt's: the relay has none for it
        Provider("openrouter", nobody).ask()
    assert type(raised.value) is PermanentTeacherError
