"""What a prompt's licence permits, on the same lattice as the terms of teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from app.domain.licences import NONE, fold_license, license_traits
from app.policy.lattice import FREE, UNKNOWN, Answer, Kind, Obligation, Permissions
from app.policy.overrides import LicenceOverride
from app.policy.terms import TERMS, Terms


@dataclass(frozen=True, slots=True)
class LicenceReading:
    """A licence id and what it permits; `terms` where the id stands for terms that are known here."""

    id: str
    permissions: Permissions
    terms: Terms | None = None
    override: LicenceOverride | None = None


def read_licence(expression: str, overrides: Mapping[str, LicenceOverride]) -> tuple[LicenceReading, ...]:
    """The ids of an expression that bind, each with what it permits: all of an AND, of an OR the least burdensome.

    Raises `InvalidLicense`.
    """

    def single(id_: str) -> tuple[LicenceReading, ...]:
        override = overrides.get(id_)
        if override is not None:
            terms = override.bound_terms()
            return (LicenceReading(id_, terms.permissions, terms, override),)
        return (_shipped(id_),)

    return fold_license(expression, single, _all, _least)


def _all(parts: Sequence[tuple[LicenceReading, ...]]) -> tuple[LicenceReading, ...]:
    return tuple({reading.id: reading for part in parts for reading in part}.values())


def _least(parts: Sequence[tuple[LicenceReading, ...]]) -> tuple[LicenceReading, ...]:
    return min(parts, key=lambda part: _joined(part).burden())


def _joined(readings: Sequence[LicenceReading]) -> Permissions:
    result = FREE
    for reading in readings:
        result = result.join(reading.permissions)
    return result


@lru_cache(maxsize=4096)
def _shipped(id_: str) -> LicenceReading:
    terms = _BY_LICENCE.get(id_)
    if terms is not None:
        return LicenceReading(id_, terms.permissions, terms)
    return LicenceReading(id_, permissions_of_id(id_))


def permissions_of_id(id_: str) -> Permissions:
    """One licence id by its traits. NC forbids commerce, ND forbids giving changed text on, SA asks for itself."""
    traits = license_traits(id_)
    if traits.unlicensed:
        return Permissions(Answer.NO, Answer.YES, Answer.NO, Answer.NO)
    if traits.unknown:
        return UNKNOWN
    obligations = set()
    if traits.attribution:
        obligations.add(
            Obligation(
                Kind.ATTRIBUTION,
                source=id_,
                text=f"Credit the authors of the prompts under {id_}, keep their notices, name and link the licence.",
                value=id_,
                url=licence_url(id_),
            )
        )
    if traits.use_restrictions:
        obligations.add(
            Obligation(
                Kind.USE_POLICY,
                source=id_,
                text=f"The use restrictions of {id_} bind whoever receives what is derived from the prompts.",
                url=licence_url(id_),
            )
        )
    return Permissions(
        train=Answer.CONDITIONAL if traits.no_derivatives else Answer.YES,
        commercial=Answer.NO if traits.non_commercial else Answer.YES,
        redistribute=Answer.NO if traits.no_derivatives else Answer.YES,
        share_alike=traits.share_alike,
        obligations=frozenset(obligations),
    )


def in_words(id_: str, subject: str) -> str:
    """What a licence id says of a flag, in this project's words (never a quotation)."""
    if id_ == NONE:
        return "NONE says that no licence was given: all rights are reserved."
    if license_traits(id_).unknown:
        return f"Nothing is known of {id_}."
    return {
        "train": f"{id_} does not let changed versions be shared: whether a model trained on the text is one is open.",
        "commercial": f"{id_} permits non-commercial use only.",
        "redistribute": f"{id_} does not permit changed versions to be given on.",
    }.get(subject, f"{id_} limits this use.")


def licence_url(id_: str) -> str:
    """Where the licence can be read."""
    if id_.startswith("LicenseRef-scancode-"):
        return f"https://scancode-licensedb.aboutcode.org/{id_.removeprefix('LicenseRef-scancode-')}.html"
    return "" if "LicenseRef-" in id_ else f"https://spdx.org/licenses/{id_}.html"


# Several terms may share an id (Llama 3.2 and its multimodal models): the strictest stands for it.
_BY_LICENCE: Mapping[str, Terms] = MappingProxyType(
    {
        terms.spdx: terms
        for terms in sorted(TERMS.values(), key=lambda t: t.permissions.burden())
        if terms.spdx
    }
)
