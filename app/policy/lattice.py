"""What may be done with data, as a bounded join-semilattice: pure, and nothing here knows a teacher or a licence.

`join` is the worst case of every flag and the union of everything owed. It is commutative, associative, idempotent
and monotone, with `FREE` as its bottom: an obligation goes away only when the rows that carry it go.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import reduce


class Answer(IntEnum):
    """May this be done? Ordered from good to bad, so that the worst of two is their `max`; unknown is the worst."""

    YES = 0
    CONDITIONAL = 1  # if a stated condition holds
    NO = 2
    UNKNOWN = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Kind(StrEnum):
    """What an obligation asks for."""

    NAMING = "naming"  # the student's name must begin with `value`
    NOTICE = "notice"  # a text that must accompany the student or the data
    DISPLAY = "display"  # words that must be shown where the student is shown
    ATTRIBUTION = "attribution"  # whoever holds `value` must be credited
    USE_POLICY = "use_policy"  # a policy that binds whoever uses the student or the data
    MAU_GATE = "mau_gate"  # a separate licence is needed above a size


@dataclass(frozen=True, slots=True, order=True)
class Obligation:
    """One duty. `source`: the terms id or licence id that it comes from; `value`: the exact words, where it has any."""

    kind: Kind
    source: str
    text: str
    value: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Permissions:
    """The four flags, and what is owed. `research_only`: only for research, whatever else is permitted.

    `share_alike` holds the ids of licences that ask for themselves on what is derived.
    """

    train: Answer = Answer.YES
    compete: Answer = Answer.YES
    commercial: Answer = Answer.YES
    redistribute: Answer = Answer.YES
    research_only: bool = False
    share_alike: frozenset[str] = frozenset()
    obligations: frozenset[Obligation] = frozenset()

    def join(self, other: "Permissions") -> "Permissions":
        """Both bind at once."""
        return Permissions(
            train=max(self.train, other.train),
            compete=max(self.compete, other.compete),
            commercial=max(self.commercial, other.commercial),
            redistribute=max(self.redistribute, other.redistribute),
            research_only=self.research_only or other.research_only,
            share_alike=self.share_alike | other.share_alike,
            obligations=self.obligations | other.obligations,
        )

    def __le__(self, other: "Permissions") -> bool:
        """Is `other` at least as strict in every respect?"""
        return self.join(other) == other

    def burden(self) -> tuple[int, ...]:
        """Sorts from free to strict. A linear order that agrees with `<=`; a choice (OR) takes the least."""
        return (
            max(self.train, self.redistribute, self.commercial, self.compete),
            int(self.train),
            int(self.redistribute),
            int(self.commercial),
            int(self.compete),
            int(self.research_only),
            len(self.share_alike),
            len(self.obligations),
        )


FREE = Permissions()
"""The bottom: everything is permitted and nothing is owed."""

UNKNOWN = Permissions(Answer.UNKNOWN, Answer.UNKNOWN, Answer.UNKNOWN, Answer.UNKNOWN)
"""Nobody knows: every flag at its worst."""


def join_all(permissions: Iterable[Permissions]) -> Permissions:
    """The join of any number; `FREE` for none."""
    return reduce(Permissions.join, permissions, FREE)


def top(share_alike: Iterable[str], obligations: Iterable[Obligation]) -> Permissions:
    """The strictest element over given licences and obligations: joining it changes nothing in it."""
    return replace(
        UNKNOWN, research_only=True, share_alike=frozenset(share_alike), obligations=frozenset(obligations)
    )


_CC_SHARE_ALIKE = re.compile(r"CC-(BY-SA|BY-NC-SA)-(2\.0|2\.5|3\.0|4\.0)(-[A-Z]+)?")


def _also_satisfied_by(licence: str) -> frozenset[str]:
    """Creative Commons lets an adaptation carry a later version with the same elements (§4(b) of 2.0 to 3.0 and
    their ports, §3(b)(1) of 4.0; not 1.0). Every other licence asks for itself only.
    """
    match = _CC_SHARE_ALIKE.fullmatch(licence)
    if match is None:
        return frozenset({licence})
    elements, version, port = match.groups()
    later = [v for v in ("2.0", "2.5", "3.0", "4.0") if v > version or (v == version and port is None)]
    return frozenset({licence, *(f"CC-{elements}-{v}" for v in later)})


def share_alike_targets(licences: Iterable[str]) -> frozenset[str]:
    """Licences that satisfy all of these at once; empty: they conflict. At least one licence must be given.

    Monotone: adding a licence never adds a target, so a conflict stays one.
    """
    return frozenset.intersection(*(_also_satisfied_by(licence) for licence in licences))


def name_prefix(obligations: Iterable[Obligation]) -> tuple[str | None, frozenset[str]]:
    """The prefix that a student's name must have, and those that cannot be met together with it.

    "Llama" and "Llama 3" are met by "Llama 3"; "Llama" and "Gemma" conflict: then no prefix is given, and both are
    named.
    """
    asked = sorted({o.value for o in obligations if o.kind is Kind.NAMING and o.value}, key=len)
    if not asked:
        return None, frozenset()
    longest = asked[-1]
    if all(longest.startswith(prefix) for prefix in asked):
        return longest, frozenset()
    return None, frozenset(asked)
