from datetime import date, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.policy.decisions import Decision, Outcome, decide
from app.policy.findings import Code
from app.policy.overrides import Contract, ContractObligation, LicenceOverride, TermsOverride
from app.policy.parts import Part
from app.policy.routes import Evidence, known_routes, resolve, route_of
from tests.unit.policy.given import COMMERCIAL, COMPETING, GPT, LLAMA, STUDY, TODAY, part, teacher

PRIVATE = Contract(
    title="Agreement 17 with OpenAI",
    train="yes",
    compete="yes",
    commercial="yes",
    redistribute="no",
    obligations=(ContractObligation(kind="notice", text="Name OpenAI.", value="With OpenAI"),),
    document="Agreement 17",
    section="9.2",
    clause="Customer may train any model.",
    paraphrase="Any student is permitted.",
)


def override(**more: object) -> TermsOverride:
    fields: dict[str, object] = {
        "id": "o1",
        "who": "dana@example.org",
        "why": "Agreement 17 of 2 March 2026",
        "since": date(2026, 3, 2),
        "contract": PRIVATE,
        "model": "gpt-4o*",
        "route": "openai-api",
    }
    return TermsOverride.model_validate(fields | more)


def ids(model: str, route: str, **more: str | None) -> set[str]:
    return {bound.terms.id for bound in resolve(teacher(model, route, **more), [], TODAY).bound}


def codes(decision: Decision) -> list[Code]:
    return [item.code for item in decision.findings]


def test_an_open_model_behind_a_host_inherits_both_sets_of_terms() -> None:
    assert ids(LLAMA[0], "weights") == {"llama-3.3"}
    assert ids(LLAMA[0], "together") == {"llama-3.3", "together"}
    axes = {b.terms.id: b.axis for b in resolve(teacher(LLAMA[0], "together"), [], TODAY).bound}
    assert axes == {"llama-3.3": "teacher", "together": "host"}


@pytest.mark.parametrize(
    ("model", "terms"),
    [
        ("meta-llama/Llama-3.2-90B-Vision-Instruct", {"llama-3.2-vision"}),
        ("META-LLAMA/LLAMA-3.2-1B", {"llama-3.2"}),
        ("llama3.1:8b", {"llama-3.1"}),
        ("llama3:8b", {"llama-3.0"}),
        ("qwen2.5:3b", {"qwen-research-2024"}),
        ("qwen2.5:72b-instruct", {"qwen-2024"}),
        ("gemma3:270m", {"gemma"}),
        ("gpt-oss:20b", {"apache-2.0-weights"}),
        ("/models/SmolLM2-135M-Instruct-Q4_1.gguf", {"apache-2.0-weights"}),
        ("deepseek-ai/DeepSeek-R1-0528", {"mit-weights"}),
    ],
)
def test_the_most_specific_name_wins(model: str, terms: set[str]) -> None:
    assert ids(model, "weights") == terms


@pytest.mark.parametrize(
    "model",
    [
        "stranger/Llama-3.3-70B-Instruct-tuned",
        "stranger/SmolLM2-135M",
        "llama-3.3",
        "models/SmolLM2.gguf",
        "Qwen/Qwen2.5-Max",
        "",
    ],
)
def test_a_strangers_model_is_not_known_and_unknown_blocks(model: str) -> None:
    decision = decide(STUDY, [part((model, "weights"), key="k")], TODAY)
    assert [item.code for item in decision.blocks] == [Code.NO_TERMS_FOR_MODEL]
    assert "override" in decision.explanation()


def test_an_unknown_route_blocks_though_the_model_is_known() -> None:
    decision = decide(STUDY, [part((LLAMA[0], "some-host"))], TODAY)
    assert [item.code for item in decision.blocks] == [Code.NO_TERMS_FOR_ROUTE]
    assert all(route in decision.explanation() for route in known_routes())


def test_the_address_shows_a_route_that_was_named_wrongly() -> None:
    assert route_of("api.openai.com") == "openai-api"
    assert route_of("eu.api.openai.com.") == "openai-api"
    assert route_of("gpu-7.example.org") is None
    assert route_of("api.openai.com.example.org") is None
    disguised = Part(
        key="k",
        teachers=(teacher("scripted", "weights", address="api.openai.com"),),
        prompt_license="MIT",
        rows=1,
    )
    decision = decide(COMPETING, [disguised], TODAY)
    assert decision.outcome is Outcome.BLOCK
    assert set(codes(decision)) >= {Code.ROUTE_MISMATCH, Code.COMPETING_FORBIDDEN}
    honest = disguised.model_copy(
        update={"teachers": (teacher("scripted", "weights", address="gpu-7.example.org"),)}
    )
    assert decide(COMPETING, [honest], TODAY).outcome is Outcome.ALLOW


def test_an_override_takes_the_place_of_the_shipped_terms_and_says_so() -> None:
    asked = [part(GPT, rows=5)]
    assert not decide(COMPETING, asked, TODAY).allowed
    decision = decide(COMPETING, asked, TODAY, overrides=[override()])
    assert decision.outcome is Outcome.ALLOW
    assert set(codes(decision)) == {Code.OVERRIDE_APPLIED}
    note = decision.findings[0]
    assert "dana@example.org" in note.message
    assert "Agreement 17 of 2 March 2026" in note.message
    assert decision.permissions.obligations[0].value == "With OpenAI"
    assert decision.permissions.obligations[0].source == "override:o1"


def test_a_users_contract_is_quoted_when_it_refuses() -> None:
    shared = COMPETING.model_copy(update={"redistribution": True})
    decision = decide(shared, [part(GPT)], TODAY, overrides=[override()])
    assert [item.code for item in decision.blocks] == [Code.REDISTRIBUTION_FORBIDDEN]
    assert decision.blocks[0].document == "Agreement 17"
    assert "“Customer may train any model.”" in decision.blocks[0].message


@pytest.mark.parametrize(
    "miss",
    [{"model": "gpt-5*"}, {"route": "openrouter"}, {"revision": "2024-*"}],
    ids=["model", "route", "revision"],
)
def test_an_override_for_another_teacher_is_not_used(miss: dict[str, object]) -> None:
    assert not decide(COMPETING, [part(GPT)], TODAY, overrides=[override(**miss)]).allowed


def test_an_override_holds_from_its_first_day_to_its_last() -> None:
    since, until = date(2026, 3, 2), date(2026, 6, 1)
    dated = [override(until=until)]
    for day, allowed in (
        (since - timedelta(days=1), False),
        (since, True),
        (until, True),
        (until + timedelta(days=1), False),
    ):
        decision = decide(COMPETING, [part(GPT)], day, overrides=dated)
        assert decision.allowed is allowed
        assert (Code.OVERRIDE_LAPSED in codes(decision)) is not allowed


def test_of_several_overrides_the_most_specific_wins_then_the_latest() -> None:
    wide = override(id="wide", model="*", route="*", contract=PRIVATE.model_copy(update={"train": "no"}))
    narrow = override(id="narrow")
    later = override(id="later", since=date(2026, 4, 1))
    for order in ([wide, narrow, later], [later, narrow, wide]):
        bound = resolve(teacher(*GPT), order, TODAY).bound
        assert [b.terms.id for b in bound] == ["override:later"]
        assert bound[0].evidence is Evidence.OWN


def test_a_strangers_fine_tune_is_placed_under_known_terms_of_the_model_axis_alone() -> None:
    placed = override(
        model="stranger/*",
        route="*",
        contract=None,
        terms=("llama-3.3",),
        replaces="model",
        why="its model card says so",
    )
    bound = resolve(teacher("stranger/tuned-llama", "together"), [placed], TODAY).bound
    assert {(b.axis, b.terms.id) for b in bound} == {("teacher", "llama-3.3"), ("host", "together")}
    decision = decide(COMMERCIAL, [part(("stranger/tuned-llama", "together"))], TODAY, overrides=[placed])
    assert decision.allowed
    assert "Llama" in {o.value for o in decision.permissions.obligations}


@pytest.mark.parametrize(
    "wrong",
    [
        {"who": ""},
        {"why": ""},
        {"contract": None},
        {"terms": ("llama-3.3",)},
        {"terms": ("no-such",), "contract": None},
        {"surprise": 1},
    ],
)
def test_an_override_without_who_why_or_terms_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        override(**wrong)


@pytest.mark.parametrize("id_", ["MIT", "NOASSERTION", "NONE", "LicenseRef-a AND LicenseRef-b", "nonsense"])
def test_only_a_licence_of_ones_own_is_overridden(id_: str) -> None:
    with pytest.raises(ValidationError):
        LicenceOverride(id="l", who="w", why="y", since=TODAY, license_id=id_, contract=PRIVATE)


def test_the_example_of_the_documentation_is_an_override() -> None:
    text = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()
    example = TermsOverride.model_validate_json(text.partition("```json\n")[2].partition("```")[0])
    assert decide(COMPETING, [part(GPT)], TODAY, overrides=[example]).outcome is Outcome.ALLOW
