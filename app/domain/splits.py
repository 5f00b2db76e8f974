"""Which split a prompt belongs to: by a hash of what is asked, so that equal prompts and siblings stay together."""

import hashlib
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from app.domain.fingerprints import canonical_json

SPLITS: Final = ("train", "validation", "test")


class Split(BaseModel):
    """Shares of the prompts. A prompt's place depends on its messages and the salt alone, not on the other prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: float = Field(1.0, ge=0, le=1)
    validation: float = Field(0.0, ge=0, le=1)
    test: float = Field(0.0, ge=0, le=1)
    salt: str = Field("", max_length=64, description="Another salt draws another split of the same sizes.")

    @model_validator(mode="after")
    def _whole(self) -> "Split":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation and test must add up to 1; they add up to {total:g}")
        return self

    @property
    def trivial(self) -> bool:
        return self.train == 1

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that have a share."""
        return tuple(name for name in SPLITS if getattr(self, name) > 0)

    def of(self, messages: JsonValue | Sequence[JsonValue]) -> int:
        """Position in `SPLITS`, by 64 bits of BLAKE2b over the canonical JSON of [salt, messages] as a share of 2⁶⁴."""
        if self.trivial:
            return 0
        digest = hashlib.blake2b(canonical_json([self.salt, messages]), digest_size=8).digest()
        share = int.from_bytes(digest, "big") / 2**64
        if share < self.train:
            return 0
        # The last split with a share takes what rounding leaves.
        return 1 if share < self.train + self.validation or self.test == 0 else 2
