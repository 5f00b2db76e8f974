"""Every row of the facts, as a table: what each teacher permits, by which words, and what the student then owes."""

import re
from dataclasses import dataclass

import pytest

from app.domain.sampling import IntendedUse
from app.policy.decisions import Outcome, decide
from app.policy.findings import Code
from app.policy.lattice import Kind
from app.policy.notice import student_notice
from app.policy.routes import HOSTS, MODELS, Evidence, model_row, resolve
from app.policy.terms import TERMS
from tests.unit.policy.given import COMMERCIAL, COMPETING, SHARED, STUDY, TODAY, part, teacher

OUTCOMES = {"+": Outcome.ALLOW, "~": Outcome.ALLOW_WITH_WARNINGS, "x": Outcome.BLOCK}

DUTIES = {
    "N": Kind.NAMING,
    "D": Kind.DISPLAY,
    "A": Kind.ATTRIBUTION,
    "O": Kind.NOTICE,
    "U": Kind.USE_POLICY,
    "M": Kind.MAU_GATE,
}

# model, access route; study, competing, commercial, shared; evidence; terms, what the student owes
TABLE = """
meta-llama/Llama-2-70b-chat-hf                     weights        x x x x  H  llama-2                          MU
meta-llama/Meta-Llama-3-8B-Instruct                weights        x x x x  H  llama-3.0                        DMNU
meta-llama/Llama-3.1-8B-Instruct                   weights        + + + +  H  llama-3.1                        DMNU
meta-llama/Llama-3.2-3B-Instruct                   weights        + + + +  H  llama-3.2                        DMNU
meta-llama/Llama-3.2-11B-Vision-Instruct           weights        ~ ~ ~ ~  H  llama-3.2-vision                 DMNU
meta-llama/Llama-3.3-70B-Instruct                  weights        + + + +  H  llama-3.3                        DMNU
meta-llama/Llama-4-Scout-17B-16E-Instruct          weights        ~ ~ ~ ~  H  llama-4                          DMNU
google/gemma-2b                                    weights        ~ ~ ~ ~  M  gemma                            OU
google/gemma-2-9b-it                               weights        ~ ~ ~ ~  M  gemma                            OU
google/gemma-3-27b-it                              weights        ~ ~ ~ ~  M  gemma                            OU
google/gemma-3n-E4B-it                             weights        ~ ~ ~ ~  M  gemma                            OU
gemma3-270m-q4-k-m                                 weights        ~ ~ ~ ~  M  gemma                            OU
google/gemma-4-31b-it                              weights        ~ ~ ~ ~  M  gemma-4                          -
Qwen/Qwen2.5-7B-Instruct                           weights        ~ ~ ~ ~  M  apache-2.0-weights               -
Qwen/Qwen2.5-14B-Instruct                          weights        ~ ~ ~ ~  M  apache-2.0-weights               -
Qwen/Qwen2.5-32B-Instruct                          weights        ~ ~ ~ ~  M  apache-2.0-weights               -
Qwen/Qwen3-8B                                      weights        ~ ~ ~ ~  M  apache-2.0-weights               -
Qwen/Qwen2.5-72B-Instruct                          weights        ~ ~ ~ ~  M  qwen-2024                        DM
Qwen/Qwen2.5-3B-Instruct                           weights        ~ ~ x ~  H  qwen-research-2024               D
Qwen/Qwen-14B-Chat                                 weights        x x x x  H  tongyi-qianwen-2023              M
deepseek-ai/DeepSeek-R1                            weights        + + + +  H  deepseek-r1                      -
deepseek-ai/DeepSeek-R1-0528                       weights        ~ ~ ~ ~  M  mit-weights                      -
deepseek-ai/DeepSeek-V3.2                          weights        ~ ~ ~ ~  M  mit-weights                      -
deepseek-ai/DeepSeek-R1-Distill-Llama-8B           weights        + + + +  H  deepseek-r1 llama-3.1            DMNU
deepseek-ai/DeepSeek-R1-Distill-Llama-70B          weights        + + + +  H  deepseek-r1 llama-3.3            DMNU
deepseek-ai/DeepSeek-R1-Distill-Qwen-7B            weights        ~ ~ ~ ~  M  deepseek-r1 apache-2.0-weights   -
deepseek-ai/DeepSeek-V3                            weights        + + + +  H  deepseek-model-1.0               OU
deepseek-ai/deepseek-coder-33b-instruct            weights        ~ ~ ~ ~  M  deepseek-model-1.0               OU
deepseek-chat                                      deepseek-api   + + + +  H  deepseek-api                     D
mistralai/Mistral-7B-Instruct-v0.3                 weights        ~ ~ ~ ~  M  apache-2.0-weights               -
mistralai/Mistral-Large-Instruct-2411              weights        ~ x x ~  H  mistral-mrl                      -
mistral-large-2411                                 mistral-api    + + + +  H  mistral-api                      U
openai/gpt-oss-120b                                weights        ~ ~ ~ ~  M  apache-2.0-weights               -
microsoft/phi-4                                    weights        ~ ~ ~ ~  M  mit-weights                      -
microsoft/Phi-4-mini-instruct                      weights        ~ ~ ~ ~  M  mit-weights                      -
HuggingFaceTB/SmolLM2-135M-Instruct                weights        ~ ~ ~ ~  M  apache-2.0-weights               -
allenai/OLMo-2-1124-13B-Instruct                   weights        ~ ~ ~ ~  M  apache-2.0-weights               -
zai-org/GLM-4.5                                    weights        ~ ~ ~ ~  M  mit-weights                      -
zai-org/GLM-4.7                                    weights        ~ ~ ~ ~  M  mit-weights                      -
zai-org/GLM-5                                      weights        ~ ~ ~ ~  M  mit-weights                      -
nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16      weights        ~ ~ ~ ~  M  nvidia-nemotron-open             O
nvidia/NVIDIA-Nemotron-Nano-9B-v2                  weights        ~ ~ ~ ~  M  nvidia-open-model                U
moonshotai/Kimi-K2-Instruct                        weights        + + + +  H  kimi-k2                          DM
moonshotai/Kimi-K3                                 weights        x x x x  M  kimi-k3                          -
CohereLabs/c4ai-command-r-v01                      weights        ~ ~ x ~  M  command-r                        AU
command-r-plus                                     cohere-api     x x x x  L  cohere-api                       -
gpt-4o-mini                                        openai-api     ~ x ~ ~  H  openai-services                  U
claude-sonnet-4-5                                  anthropic-api  x x x x  H  anthropic-commercial             -
gemini-2.5-pro                                     gemini-api     ~ x ~ ~  H  gemini-api                       U
grok-4                                             xai-api        x x x x  M  xai-enterprise                   -
meta-llama/Llama-3.3-70B-Instruct                  together       + ~ + +  H  llama-3.3 together               DMNU
accounts/fireworks/models/llama-v3p3-70b-instruct  fireworks      x x x x  H  fireworks llama-3.3              DMNU
meta-llama/Llama-3.3-70B-Instruct                  openrouter     ~ ~ ~ ~  H  llama-3.3 openrouter             DMNU
openai/gpt-4o                                      openrouter     ~ x ~ ~  H  openai-services openrouter       U
anthropic/claude-sonnet-4.5                        openrouter     x x x x  H  anthropic-commercial openrouter  -
google/gemini-2.5-pro                              openrouter     ~ x ~ ~  H  gemini-api openrouter            U
x-ai/grok-4                                        openrouter     x x x x  M  openrouter xai-enterprise        -
gemma-3-27b-it                                     gemini-api     ~ x ~ ~  M  gemini-api gemma                 OU
scripted                                           weights        + + + +  H  retort-scripted                  -
"""


@dataclass(frozen=True)
class Fact:
    outcomes: tuple[Outcome, ...]  # as USES
    evidence: Evidence
    terms: frozenset[str]
    owed: frozenset[Kind]


def facts() -> dict[tuple[str, str], Fact]:
    table = {}
    for line in TABLE.strip().splitlines():
        model, route, outcomes, evidence, terms, owed = re.split(r" {2,}", line.rstrip())
        table[model, route] = Fact(
            tuple(OUTCOMES[mark] for mark in outcomes.split()),
            Evidence(evidence),
            frozenset(terms.split()),
            frozenset(DUTIES[letter] for letter in owed if letter != "-"),
        )
    return table


FACTS = facts()
USES = {"study": STUDY, "competing": COMPETING, "commercial": COMMERCIAL, "shared": SHARED}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("who", FACTS, ids=" by ".join)
def test_what_each_teacher_permits(who: tuple[str, str], use: str) -> None:
    expected = FACTS[who].outcomes[list(USES).index(use)]
    decision = decide(USES[use], [part(who)], TODAY)
    assert decision.outcome is expected, decision.explanation()
    for item in decision.blocks:
        assert item.proceed
        assert item.teachers == (decision.inputs.parts[0].teachers[0].name,)
        assert item.clause is not None or item.paraphrase is not None or item.code is Code.TERMS_NOT_READ


@pytest.mark.parametrize("who", FACTS, ids=" by ".join)
def test_by_which_terms_each_teacher_is_bound_and_what_is_owed(who: tuple[str, str]) -> None:
    fact = FACTS[who]
    bound = resolve(teacher(*who), [], TODAY)
    assert not bound.missing
    assert {b.terms.id for b in bound.bound} == fact.terms
    model_axis = [b for b in bound.bound if b.axis == "teacher"] or list(bound.bound)
    assert {b.evidence for b in model_axis} == {fact.evidence}
    notice = student_notice(decide(STUDY, [part(who)], TODAY))
    assert {o.kind for o in notice.permissions.obligations} == fact.owed


def test_the_table_covers_every_row_of_the_data() -> None:
    assert {id_ for fact in FACTS.values() for id_ in fact.terms} == set(TERMS)
    assert {route for _, route in FACTS} == set(HOSTS)
    rows = {id(model_row(model, None, route)) for model, route in FACTS}
    assert [row.models for row in MODELS if id(row) not in rows] == []


@pytest.mark.parametrize(
    ("who", "prefix"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama 3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama"),
        ("meta-llama/Llama-3.2-3B-Instruct", "Llama"),
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "Llama"),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_the_name_that_llama_asks_of_a_student(who: str, prefix: str | None) -> None:
    assert student_notice(decide(STUDY, [part((who, "weights"))], TODAY)).required_name_prefix == prefix


QUOTED = {
    ("gpt-4o-mini", "openai-api", "compete"): (
        "3.3(e)",
        "use Output to develop artificial intelligence models that compete",
    ),
    ("claude-sonnet-4-5", "anthropic-api", "train"): (
        "Do Not Abuse our Platform",
        "without prior authorization from Anthropic",
    ),
    ("claude-sonnet-4-5", "anthropic-api", "compete"): ("D.4", "to train competing AI models"),
    ("gemini-2.5-pro", "gemini-api", "compete"): (
        "Use Restrictions",
        "develop models that compete with the Services",
    ),
    ("grok-4", "xai-api", "train"): ("2(b), 2(e)", "distill model behavior"),
    ("meta-llama/Llama-2-7b", "weights", "train"): ("1(b)(v)", "to improve any other large language model"),
    ("meta-llama/Meta-Llama-3-8B", "weights", "compete"): (
        "1(b)(v)",
        "to improve any other large language model",
    ),
    ("Qwen/Qwen-7B", "weights", "train"): ("5(b)", "to improve any other large language model"),
    ("accounts/fireworks/models/llama-v3p3-70b-instruct", "fireworks", "train"): (
        "2.2(c)",
        "artificial intelligence training",
    ),
}


@pytest.mark.parametrize("asked", QUOTED, ids=" ".join)
def test_a_refusal_quotes_the_clause(asked: tuple[str, str, str]) -> None:
    model, route, subject = asked
    section, words = QUOTED[asked]
    decision = decide(IntendedUse(competing=True), [part((model, route), rows=7)], TODAY)
    found = [item for item in decision.blocks if item.subject == subject]
    assert len(found) == 1
    assert found[0].section == section
    assert found[0].clause is not None
    assert words in found[0].clause
    assert found[0].document_sha256 is not None
    assert f"“{found[0].clause}”" in found[0].message
    assert found[0].rows == 7


@pytest.mark.parametrize(
    "who", [("mistralai/Mistral-Large-Instruct-2411", "weights"), ("Qwen/Qwen2.5-3B", "weights")]
)
def test_a_clause_that_was_not_read_is_paraphrased_and_says_so(who: tuple[str, str]) -> None:
    for item in decide(COMMERCIAL, [part(who)], TODAY).blocks:
        assert item.clause is None
        assert item.paraphrase
        assert "in our words and not quoted" in item.message
        assert "“" not in item.message


def test_mistral_research_models_need_a_research_use() -> None:
    who = [part(("mistralai/Mistral-Large-Instruct-2411", "weights"))]
    assert decide(IntendedUse(research=True), who, TODAY).allowed
    refused = decide(IntendedUse(research=False), who, TODAY)
    assert [item.code for item in refused.blocks] == [Code.RESEARCH_ONLY]


def test_how_well_the_terms_of_each_host_are_known() -> None:
    low = {"cohere-api": Evidence.L, "xai-api": Evidence.M, "fireworks": Evidence.M}
    assert {route: row.evidence for route, row in HOSTS.items()} == {
        route: low.get(route, Evidence.H) for route in HOSTS
    }


# terms, part of a section, day from which the document holds
PLACES = """
llama-2               1(b)(v)           2023-07-18
llama-3.0             1(b)(i)           2024-04-18
llama-3.3             1(b)(i)           2024-12-06
gemma                 1.1(e)            2025-03-24
gemma-4               licence           2026-04-01
qwen-research-2024    4(b)              2024-09-19
deepseek-api          4.2               2025-01-20
mistral-mrl           3.2; 4.2          -
mistral-api           3                 2025-05-27
nvidia-nemotron-open  whole             2025-12-15
nvidia-open-model     1.1               2025-10-24
openai-services       3.3(e)            2026-01-01
anthropic-commercial  D.4               2025-06-17
gemini-api            Use Restrictions  2025-05-20
xai-enterprise        2(b), 2(e)        2025-06-27
together              Model Licenses    2025-10-21
fireworks             (c)               -
openrouter            5                 2025-04-15
"""


@pytest.mark.parametrize("line", PLACES.strip().splitlines(), ids=lambda line: line.split()[0])
def test_where_each_contract_says_so_and_since_when(line: str) -> None:
    id_, section, effective = re.split(r" {2,}", line)
    found = [one for one in TERMS[id_].provisions if section in one.section]
    assert found
    days = {None if one.document.effective is None else str(one.document.effective) for one in found}
    assert days == {None if effective == "-" else effective}


def test_what_else_the_facts_ask_to_be_passed_on() -> None:
    """Conditions that stand beside the flags, in the words that a person reads."""
    for id_, words in {
        "llama-3.3": "human",
        "llama-3.2-vision": "European Union",
        "llama-4": "European Union",
        "mistral-api": "web search",
        "gemini-api": "grounding",
        "deepseek-api": "artificial intelligence",
        "nvidia-open-model": "guardrail",
        "kimi-k2": "20 million",
        "qwen-2024": "Improved using Qwen",
        "openai-services": "compete",
    }.items():
        texts = [one.text for one in TERMS[id_].permissions.obligations]
        assert any(words in text for text in texts), id_
    assert "Permitted Exception" in TERMS["openai-services"].proceed
    assert "August 2026" in TERMS["xai-enterprise"].proceed
