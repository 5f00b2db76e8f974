"""What a user puts in place of the shipped terms (a contract, a reading of their own), always with who and why."""

from datetime import date
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.domain.licences import normalise_license
from app.errors import InvalidLicense
from app.policy.lattice import Answer, Kind, Obligation, Permissions
from app.policy.terms import TERMS, Document, Provision, Terms

Word = Literal["yes", "conditional", "no", "unknown"]


class ContractObligation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    text: str = Field(min_length=1)
    value: str = ""
    url: str = ""


class Contract(BaseModel):
    """Terms in the user's own words. `clause` is a quotation of theirs; it is shown as such, with `document`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1)
    train: Word
    compete: Word
    commercial: Word
    redistribute: Word
    research_only: bool = False
    share_alike: tuple[str, ...] = Field((), description="Licence ids that derived data must carry.")
    obligations: tuple[ContractObligation, ...] = ()
    document: str = Field(min_length=1, description="Which contract, letter or licence says so.")
    section: str = ""
    clause: str | None = None
    paraphrase: str = Field(min_length=1, description="What it says, in your words.")
    url: str = ""

    def terms(self, id_: str, read: date) -> Terms:
        """As terms, whose id names the override."""
        subjects = frozenset({"train", "compete", "commercial", "redistribute", "research", *Kind})
        document = Document(id=id_, title=self.document, url=self.url, read=read)
        return Terms(
            id=id_,
            title=self.title,
            permissions=Permissions(
                train=Answer[self.train.upper()],
                compete=Answer[self.compete.upper()],
                commercial=Answer[self.commercial.upper()],
                redistribute=Answer[self.redistribute.upper()],
                research_only=self.research_only,
                share_alike=frozenset(self.share_alike),
                obligations=frozenset(
                    Obligation(kind=o.kind, source=id_, text=o.text, value=o.value, url=o.url)
                    for o in self.obligations
                ),
            ),
            proceed="Change the declared use, or the override if the contract was changed.",
            provisions=(Provision(document, self.section, subjects, self.clause, self.paraphrase),),
        )


class _Statement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    who: str = Field(min_length=1, max_length=200, description="Who answers for it.")
    why: str = Field(
        min_length=1,
        max_length=2000,
        description="For example the contract's number, or who gave the permission.",
    )
    since: date
    until: date | None = Field(None, description="Last day on which it holds; none: until it is revoked.")

    def in_force(self, today: date) -> bool:
        return self.since <= today and (self.until is None or today <= self.until)


class TermsStatement(_Statement):
    """For teachers that match `model`, `revision` and `route` (globs), these terms bind in place of the shipped ones.

    `replaces`: the model's terms, the host's, or both. `terms` names shipped terms ("this fine-tune is under
    llama-3.3"); `contract` states others.
    """

    kind: Literal["terms"] = "terms"
    model: str = Field("*", min_length=1, max_length=300, description="Glob over the model's name.")
    revision: str = Field("*", min_length=1, max_length=200, description="Glob over the revision.")
    route: str = Field("*", min_length=1, max_length=64, description="Glob over the access route.")
    replaces: Literal["all", "model", "host"] = Field(
        "all", description="The model's terms, the host's, or both."
    )
    terms: tuple[str, ...] = Field((), max_length=20, description="Ids of shipped terms that hold.")
    contract: Contract | None = Field(None, description="Other terms, in your own words.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.terms) == (self.contract is not None):
            raise ValueError("give either `terms` (ids of shipped terms) or `contract`")
        unknown = [id_ for id_ in self.terms if id_ not in TERMS]
        if unknown:
            raise ValueError(f"no such terms: {', '.join(unknown)}; known are {', '.join(sorted(TERMS))}")
        return self


class TermsOverride(TermsStatement):
    id: str = Field(min_length=1)

    def bound_terms(self) -> tuple[Terms, ...]:
        if self.contract is not None:
            return (self.contract.terms(f"override:{self.id}", self.since),)
        return tuple(TERMS[id_] for id_ in self.terms)


class LicenceStatement(_Statement):
    """What a `LicenseRef-…` of the user's own (or one that is not understood) permits for prompts."""

    kind: Literal["license"] = "license"
    license_id: str = Field(max_length=512, description="`LicenseRef-…`.")
    contract: Contract

    @field_validator("license_id")
    @classmethod
    def _a_reference(cls, value: str) -> str:
        try:
            normal = normalise_license(value)
        except InvalidLicense as error:
            raise ValueError(error.detail) from error
        if " " in normal or "LicenseRef-" not in normal:
            raise ValueError(
                f"{value!r} is not one LicenseRef-… id: the licences of the SPDX list are not overridden"
            )
        return normal


class LicenceOverride(LicenceStatement):
    id: str = Field(min_length=1)

    def bound_terms(self) -> Terms:
        return self.contract.terms(f"override:{self.id}", self.since)
