"""The shipped terms, as they are read."""

from datetime import date

from pydantic import BaseModel, ConfigDict, Field

from app.errors import NotFound
from app.policy.record import PermissionsRecord
from app.policy.routes import HOSTS, MODELS
from app.policy.rules import PolicyRules
from app.policy.terms import POLICY_VERSION, TERMS, Terms, policy_digest


class ProvisionView(BaseModel):
    """What a document says. `clause` is a quotation; where it is null, all that is claimed is `paraphrase`."""

    model_config = ConfigDict(frozen=True)

    document: str
    section: str
    about: list[str]
    clause: str | None
    paraphrase: str
    effective: date | None
    read: date
    url: str
    document_sha256: str | None = Field(description="Of the text that was read whole.")


class TermsView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    title: str
    spdx: str | None
    permissions: PermissionsRecord
    proceed: str
    provisions: list[ProvisionView]


class ModelRowView(BaseModel):
    """Globs over model names, and the terms that bind them."""

    model_config = ConfigDict(frozen=True)

    models: list[str]
    revisions: list[str]
    routes: list[str]
    terms: list[str]
    evidence: str


class RouteView(BaseModel):
    model_config = ConfigDict(frozen=True)

    route: str
    title: str
    hostnames: list[str]
    terms: list[str]
    evidence: str
    model_terms: str


class PolicyView(BaseModel):
    """The policy that this service decides by."""

    model_config = ConfigDict(frozen=True)

    version: str
    digest: str = Field(description="SHA-256 over the data: equal digests know the same terms.")
    rules: PolicyRules
    terms: list[str] = Field(description="Ids, see `/v1/policy/terms/{id}`.")
    models: list[ModelRowView]
    routes: list[RouteView]


def policy_view(rules: PolicyRules) -> PolicyView:
    return PolicyView(
        version=POLICY_VERSION,
        digest=policy_digest(),
        rules=rules,
        terms=sorted(TERMS),
        models=[
            ModelRowView(
                models=list(row.models),
                revisions=list(row.revisions),
                routes=list(row.routes),
                terms=[one.id for one in row.terms],
                evidence=row.evidence,
            )
            for row in MODELS
        ],
        routes=[
            RouteView(
                route=row.route,
                title=row.title,
                hostnames=list(row.hostnames),
                terms=[one.id for one in row.terms],
                evidence=row.evidence,
                model_terms=row.model_terms,
            )
            for row in HOSTS.values()
        ],
    )


def terms_view(terms_id: str) -> TermsView:
    """Raises `NotFound` with the ids that there are."""
    found = TERMS.get(terms_id)
    if found is None:
        raise NotFound(f"there are no terms {terms_id!r}; there are: {', '.join(sorted(TERMS))}")
    return _view(found)


def _view(terms: Terms) -> TermsView:
    return TermsView(
        id=terms.id,
        title=terms.title,
        spdx=terms.spdx,
        permissions=PermissionsRecord.of(terms.permissions),
        proceed=terms.proceed,
        provisions=[
            ProvisionView(
                document=one.document.title,
                section=one.section,
                about=sorted(one.about),
                clause=one.clause,
                paraphrase=one.paraphrase,
                effective=one.document.effective,
                read=one.document.read,
                url=one.document.url,
                document_sha256=one.document.sha256,
            )
            for one in terms.provisions
        ],
    )
