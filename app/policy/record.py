"""Permissions as they are stored and sent: words in place of numbers, sets in a fixed order."""

from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict

from app.policy.lattice import Answer, Kind, Obligation, Permissions


class ObligationRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    source: str
    text: str
    value: str = ""
    url: str = ""

    @classmethod
    def of(cls, obligation: Obligation) -> Self:
        return cls(
            kind=obligation.kind,
            source=obligation.source,
            text=obligation.text,
            value=obligation.value,
            url=obligation.url,
        )

    def obligation(self) -> Obligation:
        return Obligation(self.kind, self.source, self.text, self.value, self.url)


def recorded(obligations: Iterable[Obligation]) -> tuple[ObligationRecord, ...]:
    return tuple(ObligationRecord.of(obligation) for obligation in sorted(obligations))


class PermissionsRecord(BaseModel):
    """`Permissions`, JSON-ready. `of` and `permissions` are inverse to each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    compete: str
    commercial: str
    redistribute: str
    research_only: bool
    share_alike: tuple[str, ...]
    obligations: tuple[ObligationRecord, ...]

    @classmethod
    def of(cls, permissions: Permissions) -> Self:
        return cls(
            train=permissions.train.word,
            compete=permissions.compete.word,
            commercial=permissions.commercial.word,
            redistribute=permissions.redistribute.word,
            research_only=permissions.research_only,
            share_alike=tuple(sorted(permissions.share_alike)),
            obligations=recorded(permissions.obligations),
        )

    def permissions(self) -> Permissions:
        return Permissions(
            train=Answer[self.train.upper()],
            compete=Answer[self.compete.upper()],
            commercial=Answer[self.commercial.upper()],
            redistribute=Answer[self.redistribute.upper()],
            research_only=self.research_only,
            share_alike=frozenset(self.share_alike),
            obligations=frozenset(record.obligation() for record in self.obligations),
        )
