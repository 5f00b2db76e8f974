"""Which terms bind a teacher: by model, revision and access route, with the user's overrides first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

from app.policy.overrides import TermsOverride
from app.policy.parts import TeacherRef
from app.policy.terms import TERMS, Terms, TermsDataError, parsed

Axis = Literal["teacher", "host"]


class Evidence(StrEnum):
    """How well the terms are known. Permitted: H; M and `declared` with a warning; `own` with a note. L blocks."""

    H = "H"  # the clause itself was read
    M = "M"  # an excerpt, or a secondary source
    L = "L"  # not read
    OWN = "own"  # the user's own statement: an override, with who and why
    DECLARED = "declared"  # named when the teacher was registered, without a why


@dataclass(frozen=True, slots=True)
class ModelRow:
    models: tuple[str, ...]
    revisions: tuple[str, ...]
    routes: tuple[str, ...]
    terms: tuple[Terms, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class HostRow:
    """An access route. `model_terms`: do the model's own terms bind beside the host's?"""

    route: str
    title: str
    hostnames: tuple[str, ...]
    terms: tuple[Terms, ...]
    evidence: Evidence
    model_terms: Literal["required", "if-known", "never"]


@dataclass(frozen=True, slots=True)
class Bound:
    """Terms that bind a teacher, on which axis, how well known, and by whose word."""

    axis: Axis
    terms: Terms
    evidence: Evidence
    override: TermsOverride | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """All terms of one teacher. `missing`: axes on which nothing is known (they block).

    `lapsed`: overrides that would match but are not in force. `address_routes`: the routes that its present or an
    earlier address belongs to, other than the declared one; their terms are bound as well.
    """

    bound: tuple[Bound, ...]
    missing: tuple[Axis, ...]
    lapsed: tuple[TermsOverride, ...] = ()
    address_routes: tuple[str, ...] = ()


def resolve(teacher: TeacherRef, overrides: Sequence[TermsOverride], today: date) -> Resolution:
    """The terms that bind a teacher. An open-weight model behind a host is bound by the model's and the host's.

    Of several overrides that match, the one with the longest literal globs wins, then the latest.
    """
    matching = [override for override in overrides if _overrides(override, teacher)]
    in_force = sorted((o for o in matching if o.in_force(today)), key=_override_rank, reverse=True)
    lapsed = tuple(o for o in matching if not o.in_force(today))
    found = (route_of(address) for address in (teacher.address, *teacher.past_addresses))
    address_routes = tuple(dict.fromkeys(r for r in found if r is not None and r != teacher.access_route))

    bound: list[Bound] = []
    missing: list[Axis] = []
    axes: tuple[tuple[Axis, str], ...] = (("teacher", "model"), ("host", "host"))
    for axis, what in axes:
        chosen = next((o for o in in_force if o.replaces in ("all", what)), None)
        if chosen is not None:
            bound.extend(Bound(axis, terms, Evidence.OWN, chosen) for terms in chosen.bound_terms())
            continue
        shipped = _model_terms(teacher) if axis == "teacher" else _host_terms(teacher, address_routes)
        if shipped is None:
            missing.append(axis)
        else:
            bound.extend(shipped)
    unique = {(b.terms.id, b.evidence): b for b in reversed(bound)}
    return Resolution(tuple(reversed(unique.values())), tuple(missing), lapsed, address_routes)


def route_of(address: str | None) -> str | None:
    """The access route that a host name belongs to, where one of routes.toml names it."""
    if address is None:
        return None
    host = address.lower().rstrip(".")
    return next(
        (row.route for row in HOSTS.values() if any(fnmatchcase(host, name) for name in row.hostnames)), None
    )


def known_routes() -> tuple[str, ...]:
    return tuple(sorted(HOSTS))


def model_row(model: str, revision: str | None, route: str) -> ModelRow | None:
    """The most specific row for a model, or None."""
    name = _name(model)
    best: tuple[tuple[bool, bool, int], ModelRow] | None = None
    for row in MODELS:
        literals = [_literal(glob) for glob in row.models if _model_matches(glob, name)]
        revision_fits = not row.revisions or (revision is not None and _any(row.revisions, revision))
        if not literals or not revision_fits or (row.routes and not _any(row.routes, route)):
            continue
        rank = (bool(row.revisions), bool(row.routes), max(literals))
        if best is None or rank > best[0]:
            best = (rank, row)
    return None if best is None else best[1]


def _model_terms(teacher: TeacherRef) -> list[Bound] | None:
    host = HOSTS.get(teacher.access_route)
    if host is not None and host.model_terms == "never":
        return []
    row = model_row(teacher.model, teacher.revision, teacher.access_route)
    if row is not None:
        return [Bound("teacher", terms, row.evidence) for terms in row.terms]
    if teacher.terms_id is not None and teacher.terms_id in TERMS:
        return [Bound("teacher", TERMS[teacher.terms_id], Evidence.DECLARED)]
    return [] if host is not None and host.model_terms == "if-known" else None


def _host_terms(teacher: TeacherRef, address_routes: Sequence[str]) -> list[Bound] | None:
    row = HOSTS.get(teacher.access_route)
    if row is None:
        return None
    rows = [row, *(HOSTS[route] for route in address_routes)]
    return [Bound("host", terms, row.evidence) for row in rows for terms in row.terms]


def _name(model: str) -> str:
    """The name that globs are held against: lower case; of a path to a file or folder, its last step."""
    if model.startswith(("/", "./", "../", "~")) or "\\" in model:
        model = re.split(r"[\\/]", model.rstrip("\\/"))[-1]
    return model.lower()


def _model_matches(glob: str, name: str) -> bool:
    owner_glob, _, rest_glob = glob.lower().rpartition("/")
    owner, _, rest = name.rpartition("/")
    return owner == owner_glob and fnmatchcase(rest, rest_glob)


def _overrides(override: TermsOverride, teacher: TeacherRef) -> bool:
    return (
        fnmatchcase(teacher.model.lower(), override.model.lower())
        and (override.revision == "*" or fnmatchcase(teacher.revision or "", override.revision))
        and fnmatchcase(teacher.access_route, override.route)
    )


def _override_rank(override: TermsOverride) -> tuple[int, date, str]:
    literal = _literal(override.model) + _literal(override.revision) + _literal(override.route)
    return (literal, override.since, override.id)


def _literal(glob: str) -> int:
    """How many characters of a glob stand for themselves."""
    return len(re.sub(r"\[[^\]]*\]|[*?]", "", glob))


def _any(globs: tuple[str, ...], value: str) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)


def _load() -> tuple[tuple[ModelRow, ...], dict[str, HostRow]]:
    data = parsed("routes.toml")
    models, hosts = data["models"], data["hosts"]
    if not isinstance(models, list) or not isinstance(hosts, list):
        raise TermsDataError("routes.toml needs [[models]] and [[hosts]]")
    return (
        tuple(
            ModelRow(
                models=tuple(row["models"]),
                revisions=tuple(row.get("revisions", ())),
                routes=tuple(row.get("routes", ())),
                terms=tuple(TERMS[id_] for id_ in row["terms"]),
                evidence=Evidence(row["evidence"]),
            )
            for row in models
        ),
        {
            row["route"]: HostRow(
                route=row["route"],
                title=row["title"],
                hostnames=tuple(row["hostnames"]),
                terms=tuple(TERMS[id_] for id_ in row["terms"]),
                evidence=Evidence(row["evidence"]),
                model_terms=row["model_terms"],
            )
            for row in hosts
        },
    )


MODELS, HOSTS = _load()
