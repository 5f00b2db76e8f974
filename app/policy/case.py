"""What the judging of every part of one decision has in common."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from app.domain.sampling import IntendedUse
from app.policy.lattice import Answer, Permissions
from app.policy.overrides import LicenceOverride, TermsOverride
from app.policy.parts import TrainingData
from app.policy.rules import Moment, PolicyRules

Flag = Literal["train", "compete", "commercial", "redistribute"]

DOING: dict[str, str] = {
    "train": "Training on",
    "compete": "Training a competing model on",
    "commercial": "Commercial use of",
    "redistribute": "Giving others",
}


@dataclass(frozen=True, slots=True)
class Case:
    use: IntendedUse
    today: date
    moment: Moment
    rules: PolicyRules
    overrides: Sequence[TermsOverride]
    licence_overrides: Mapping[str, LicenceOverride]
    training_data: Mapping[str, TrainingData]  # by export

    def asked(self) -> Iterator[Flag]:
        """The flags that the use depends on. Training is always meant."""
        yield "train"
        if self.use.competing:
            yield "compete"
        if self.use.commercial:
            yield "commercial"
        if self.use.redistribution:
            yield "redistribute"

    @property
    def is_research(self) -> bool:
        """Does the use keep to "research only"?"""
        return self.use.research and not self.use.commercial


def answer(permissions: Permissions, flag: Flag) -> Answer:
    match flag:
        case "train":
            return permissions.train
        case "compete":
            return permissions.compete
        case "commercial":
            return permissions.commercial
        case "redistribute":
            return permissions.redistribute
