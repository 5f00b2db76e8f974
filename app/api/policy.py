"""Routes of the policy: what it decides by, what it decided, and what users put in its place."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import Admin, Reader, Reading, ResourcesDep, Writing, note
from app.api.once import AdminOnce
from app.api.paging import Cursor, Limit, Page, page_of, text_place
from app.db.audit import Event
from app.services import decisions, evaluations, overrides, terms_views
from app.services.decisions import DecisionSummary, DecisionView, ReplayView
from app.services.evaluations import EvaluationRequest
from app.services.overrides import NewOverride, OverrideView
from app.services.policy import PolicyForecast
from app.services.terms_views import PolicyView, TermsView

router = APIRouter(prefix="/v1/policy", tags=["policy"])

DecisionId = Annotated[str, Path(max_length=64, description="Id of a decision, `dec_…`.")]
OverrideId = Annotated[str, Path(max_length=64, description="Id of an override, `ovr_…`.")]

_OVERRIDES: Any = {
    "a private contract": {
        "value": {
            "kind": "terms",
            "model": "gpt-*",
            "route": "openai-api",
            "who": "dana@example.org",
            "why": "Agreement 17 of 2 March 2026, section 9.2",
            "until": "2031-03-01",
            "contract": {
                "title": "Agreement 17 with OpenAI",
                "train": "yes",
                "compete": "yes",
                "commercial": "yes",
                "redistribute": "no",
                "document": "Agreement 17",
                "section": "9.2",
                "paraphrase": "Any student is permitted; the data stays here.",
            },
        }
    },
    "a fine-tune under known terms": {
        "value": {
            "kind": "terms",
            "model": "our-org/llama-3.3-tuned*",
            "route": "weights",
            "replaces": "model",
            "terms": ["llama-3.3"],
            "who": "dana@example.org",
            "why": "Tuned by us from Llama-3.3-70B-Instruct",
        }
    },
    "a licence of your own for prompts": {
        "value": {
            "kind": "license",
            "license_id": "LicenseRef-our-prompts",
            "who": "dana@example.org",
            "why": "Written by our own staff",
            "contract": {
                "title": "Our own prompts",
                "train": "yes",
                "compete": "yes",
                "commercial": "yes",
                "redistribute": "yes",
                "document": "Employment contracts",
                "paraphrase": "What staff write is ours.",
            },
        }
    },
}


@router.get("", response_model=PolicyView, summary="Read the policy")
def read_policy(who: Reader, given: ResourcesDep) -> PolicyView:
    """Its version, how strict it is, which models and routes it knows, and by which terms."""
    return terms_views.policy_view(given.policy_rules)


@router.get("/terms/{terms_id}", response_model=TermsView, summary="Read shipped terms")
def read_terms(
    who: Reader, terms_id: Annotated[str, Path(max_length=100, description="Id of terms, as `llama-3.3`.")]
) -> TermsView:
    """What they permit and ask, each with its document, section, and the clause where the text itself was read."""
    return terms_views.terms_view(terms_id)


@router.post("/evaluate", response_model=PolicyForecast, summary="Evaluate a use")
def evaluate_use(
    session: Reading,
    who: Reader,
    given: ResourcesDep,
    body: Annotated[
        EvaluationRequest,
        Body(
            openapi_examples={
                "may this teacher make a competing student?": {
                    "value": {
                        "teachers": ["small"],
                        "licenses": ["CC-BY-4.0"],
                        "intended_use": {"competing": True, "commercial": True},
                    }
                }
            }
        ),
    ],
) -> PolicyForecast:
    """What the policy would say, with the project's overrides. Nothing is stored.

    ```sh
    curl -s http://127.0.0.1:8321/v1/policy/evaluate -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' \\
      -d '{"teachers": ["small"], "licenses": ["CC-BY-4.0"], "intended_use": {"competing": true}}'
    ```
    """
    return evaluations.evaluate(session, who.project_id, body, given.policy_rules)


@router.get("/decisions", response_model=Page[DecisionSummary], summary="List decisions")
def list_decisions(
    session: Reading,
    who: Reader,
    subject: Annotated[
        str | None, Query(max_length=64, description="Only decisions about this job or export.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[DecisionSummary]:
    """Newest first, refusals too."""
    found = decisions.page(session, who.project_id, subject, text_place("decisions", cursor), limit + 1)
    return page_of("decisions", found, limit, lambda one: [one.id])


@router.get("/decisions/{decision_id}", response_model=DecisionView, summary="Read a decision")
def read_decision(session: Reading, who: Reader, decision_id: DecisionId) -> DecisionView:
    """With all its inputs: the use, the parts, the overrides, the day, the rules."""
    return decisions.get(session, who.project_id, decision_id)


@router.post("/decisions/{decision_id}/replay", response_model=ReplayView, summary="Replay a decision")
def replay_decision(session: Reading, who: Reader, decision_id: DecisionId) -> ReplayView:
    """The same inputs again: under the same policy they must give the same decision; under a newer one, what changed.

    ```sh
    curl -s -X POST "http://127.0.0.1:8321/v1/policy/decisions/$DECISION/replay" \\
      -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    return decisions.replayed(session, who.project_id, decision_id)


@router.post("/overrides", status_code=201, response_model=OverrideView, summary="Record an override")
def record_override(
    once: AdminOnce, body: Annotated[NewOverride, Body(openapi_examples=_OVERRIDES)]
) -> Response:
    """A private contract, known terms for a model of your own, or the meaning of a `LicenseRef-…`: with who and why.

    It holds for decisions from now on. It cannot be changed: revoke it and record another.

    ```sh
    curl -s http://127.0.0.1:8321/v1/policy/overrides -H "Authorization: Bearer $RETORT_API_KEY" \\
      -H 'Content-Type: application/json' \\
      -d '{"kind": "terms", "model": "my-org/*", "route": "weights", "terms": ["apache-2.0-weights"],
           "who": "dana@example.org", "why": "Trained by us from scratch"}'
    ```
    """
    who = once.caller
    return once.answer(
        201,
        lambda: overrides.record(once.session, who.project_id, who.key_id, body),
        audit=lambda made: Event(
            "override.record",
            made.id,
            {"kind": made.kind, "who": made.override.who, "why": made.override.why},
        ),
    )


@router.get("/overrides", response_model=Page[OverrideView], summary="List overrides")
def list_overrides(
    session: Reading, who: Reader, limit: Limit = 50, cursor: Cursor = None
) -> Page[OverrideView]:
    """Newest first, revoked ones too."""
    found = overrides.page(session, who.project_id, text_place("overrides", cursor), limit + 1)
    return page_of("overrides", found, limit, lambda one: [one.id])


@router.get("/overrides/{override_id}", response_model=OverrideView, summary="Read an override")
def read_override(session: Reading, who: Reader, override_id: OverrideId) -> OverrideView:
    """Who recorded it, why, and whether it is in force."""
    return overrides.get(session, who.project_id, override_id)


class Revocation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    why: str = Field(min_length=1, max_length=2000, description="For example: the contract has ended.")


@router.post("/overrides/{override_id}/revoke", response_model=OverrideView, summary="Revoke an override")
def revoke_override(
    session: Writing,
    who: Admin,
    override_id: OverrideId,
    body: Annotated[
        Revocation,
        Body(openapi_examples={"an ended contract": {"value": {"why": "The contract has ended."}}}),
    ],
) -> OverrideView:
    """No decision is made with it any more. What was made stays, and an export of it is judged anew."""
    gone = overrides.revoke(session, who.project_id, who.key_id, override_id, body.why)
    note(session, who, Event("override.revoke", override_id, {"why": body.why}))
    return gone
