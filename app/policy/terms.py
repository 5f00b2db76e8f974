"""The terms as data: documents, provisions and terms, loaded from `terms.toml` and checked as they load."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files

from app.policy.lattice import Answer, Kind, Obligation, Permissions

FLAGS = ("train", "compete", "commercial", "redistribute")
_ABOUT = frozenset({*FLAGS, "research", *Kind})


@dataclass(frozen=True, slots=True)
class Document:
    """Where a provision stands. With a `sha256` (of the file at `archive`, `commit`, `path`) it was read whole."""

    id: str
    title: str
    url: str
    read: date
    effective: date | None = None
    archive: str | None = None
    commit: str | None = None
    path: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Provision:
    """What a document says of some flags or duties. `clause` is a quotation; where it is None, all that is claimed is
    `paraphrase`.
    """

    document: Document
    section: str
    about: frozenset[str]
    clause: str | None
    paraphrase: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What one contract or licence permits, what it asks, and where it says so."""

    id: str
    title: str
    permissions: Permissions
    proceed: str  # how to go on after a refusal
    provisions: tuple[Provision, ...]
    spdx: str | None = None  # the licence id that stands for these terms on data that they reach

    def provision_about(self, subject: str) -> Provision | None:
        """The first provision about a flag or a kind of obligation; a quoted one before a paraphrased one."""
        found = [provision for provision in self.provisions if subject in provision.about]
        return min(found, key=lambda provision: provision.clause is None, default=None)

    @property
    def read(self) -> date | None:
        """The day on which the text that was read longest ago was read; None for terms that need no reading."""
        return min((provision.document.read for provision in self.provisions), default=None)

    @property
    def reaches_outputs(self) -> bool:
        """Do the terms bind whoever holds the outputs, and not only who asked? Then their licence id is part of the
        data's licence.
        """
        p = self.permissions
        return bool(p.obligations) or p.research_only or p.commercial is not Answer.YES


class TermsDataError(ValueError):
    """The shipped data contradicts itself; raised while loading, and never after the tests have passed."""


@lru_cache(maxsize=1)
def _source() -> Mapping[str, bytes]:
    folder = files("app.policy")
    return {name: (folder / name).read_bytes() for name in ("routes.toml", "terms.toml")}


def parsed(name: str) -> dict[str, object]:
    """One of the data files as TOML."""
    return tomllib.loads(_source()[name].decode())


@lru_cache(maxsize=1)
def policy_digest() -> str:
    """SHA-256 over both data files: two services with the same digest know the same terms."""
    return sha256(b"\0".join(_source()[name] for name in sorted(_source()))).hexdigest()


def _load() -> tuple[str, Mapping[str, Terms]]:
    data = parsed("terms.toml")
    version, documents_data, terms_data = data["version"], data["documents"], data["terms"]
    if (
        not isinstance(version, str)
        or not isinstance(documents_data, dict)
        or not isinstance(terms_data, dict)
    ):
        raise TermsDataError("terms.toml needs `version`, [documents.*] and [terms.*]")
    if parsed("routes.toml")["version"] != version:
        raise TermsDataError("routes.toml and terms.toml are of different versions")
    documents = {key: _document(key, value) for key, value in documents_data.items()}
    return version, {key: _terms(key, value, documents) for key, value in terms_data.items()}


def _document(id_: str, data: dict[str, object]) -> Document:
    document = Document(id=id_, **data)  # type: ignore[arg-type]  # checked field by field below
    whole = (document.archive, document.commit, document.path, document.sha256)
    if any(part is not None for part in whole) and not all(isinstance(part, str) and part for part in whole):
        raise TermsDataError(f"document {id_}: archive, commit, path and sha256 come together")
    if document.sha256 is not None and len(bytes.fromhex(document.sha256)) != 32:
        raise TermsDataError(f"document {id_}: sha256 has the wrong length")
    if not isinstance(document.read, date):
        raise TermsDataError(f"document {id_}: `read` is a date")
    return document


def _terms(id_: str, data: dict[str, object], documents: Mapping[str, Document]) -> Terms:
    obligations, provisions = data.get("obligations", []), data["provisions"]
    if not isinstance(obligations, list) or not isinstance(provisions, list) or not provisions:
        raise TermsDataError(f"terms {id_}: needs provisions")
    spdx = data.get("spdx")
    return Terms(
        id=id_,
        title=str(data["title"]),
        permissions=Permissions(
            train=_answer(data["train"]),
            compete=_answer(data["compete"]),
            commercial=_answer(data["commercial"]),
            redistribute=_answer(data["redistribute"]),
            research_only=data.get("research_only", False) is True,
            obligations=frozenset(
                Obligation(
                    kind=Kind(item["kind"]),
                    source=id_,
                    text=item["text"],
                    value=item.get("value", ""),
                    url=item.get("url", ""),
                )
                for item in obligations
            ),
        ),
        proceed=str(data["proceed"]),
        provisions=tuple(_provision(id_, item, documents) for item in provisions),
        spdx=None if spdx is None else str(spdx),
    )


def _answer(word: object) -> Answer:
    return Answer[str(word).upper()]


def _provision(terms_id: str, data: dict[str, object], documents: Mapping[str, Document]) -> Provision:
    document, about, quote = documents[str(data["document"])], data["about"], data.get("quote")
    if quote is not None and document.sha256 is None:
        raise TermsDataError(f"terms {terms_id} quotes {document.id}, which was not read whole")
    if not isinstance(about, list) or not about or not _ABOUT.issuperset(about):
        raise TermsDataError(
            f"terms {terms_id}, {data['section']}: `about` names flags and kinds of obligation"
        )
    return Provision(
        document=document,
        section=str(data["section"]),
        about=frozenset(about),
        clause=None if quote is None else str(quote),
        paraphrase=str(data["paraphrase"]),
    )


POLICY_VERSION, TERMS = _load()
"""The version of the shipped data, and the terms by id."""
