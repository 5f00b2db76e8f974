"""What a call costs. A price is never guessed and an unknown cost is None, never 0.

Money is counted in whole nano-dollars (10⁻⁹ USD), so that sums over many rows are exact.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

NANO = 10**9

Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=18, decimal_places=9)]


class Rate(BaseModel):
    """USD per million tokens, and when it holds: of a price's rates, the last one that fits counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Dollars = Field(description="USD per million prompt tokens.")
    output: Dollars = Field(description="USD per million generated tokens, reasoning included.")
    cached_input: Dollars | None = Field(
        None, description="USD per million prompt tokens from the provider's cache; null: as `input`."
    )
    batch: bool = Field(False, description="Holds for the provider's batch API only.")
    prompt_over: int = Field(0, ge=0, description="Holds for prompts of more tokens than this.")
    hours_utc: tuple[time, time] | None = Field(
        None, description="Holds from the one time of day to the other, in UTC."
    )

    @field_validator("hours_utc")
    @classmethod
    def _without_offset(cls, value: tuple[time, time] | None) -> tuple[time, time] | None:
        if value is not None and any(one.utcoffset() for one in value):
            raise ValueError("hours are told in UTC, without an offset")
        return None if value is None else (value[0].replace(tzinfo=None), value[1].replace(tzinfo=None))

    def fits(self, prompt_tokens: int, batch: bool, at: datetime) -> bool:
        if (self.batch and not batch) or (self.prompt_over and prompt_tokens <= self.prompt_over):
            return False
        if self.hours_utc is None:
            return True
        start, end = self.hours_utc
        now = at.astimezone(UTC).time()
        return start <= now < end if start <= end else now >= start or now < end


class Price(BaseModel):
    """A teacher's rates as they were known when a job began, and from where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="`teacher`: told when it was registered; else who published it, and when."
    )
    rates: tuple[Rate, ...] = Field(min_length=1)

    def cost(
        self,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        cached_tokens: int | None = None,
        *,
        batch: bool = False,
        at: datetime | None = None,
    ) -> Decimal | None:
        """USD for one request; None where a count that matters is not known, or no rate fits.

        `cached_tokens` are part of `prompt_tokens`; None counts as none, which can only make it dearer.
        """
        if prompt_tokens is None or completion_tokens is None:
            return None
        rate = rate_for(self.rates, prompt_tokens, batch, at or datetime.now(UTC))
        if rate is None:
            return None
        cached = min(cached_tokens or 0, prompt_tokens)
        cheap = rate.input if rate.cached_input is None else rate.cached_input
        whole = (prompt_tokens - cached) * rate.input + cached * cheap + completion_tokens * rate.output
        return whole / 1_000_000


def rate_for(rates: Sequence[Rate], prompt_tokens: int, batch: bool, at: datetime) -> Rate | None:
    """The last rate that fits."""
    return next((rate for rate in reversed(rates) if rate.fits(prompt_tokens, batch, at)), None)


def nano(cost: Decimal | None) -> int | None:
    """Whole nano-dollars."""
    return None if cost is None else int((cost * NANO).to_integral_value(ROUND_HALF_UP))


def dollars(nano_dollars: int | None) -> float | None:
    """USD, for people and JSON."""
    return None if nano_dollars is None else nano_dollars / NANO
