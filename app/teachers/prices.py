"""What a teacher costs: its own rates where it was registered with some, else the published ones of its provider.

The published ones come with the package `genai-prices` (Pydantic, MIT) and are read from it, never from the network.
A model that is run by oneself has no published price.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from app.domain.prices import Price, Rate
from app.domain.teacher import TeacherSpec
from app.teachers.base import Usage
from app.teachers.providers import PROVIDERS

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice


def price_of_teacher(spec: TeacherSpec, own: Sequence[Rate] | None) -> Price | None:
    """The price as it is known now; None: unknown. `own`: the rates that the teacher was registered with."""
    if own:
        return Price(source="teacher", rates=tuple(own))
    provider = _publisher(spec)
    return None if provider is None else _published(provider, spec.model)


def price_of(price: Price | None, usage: Usage, batch: bool = False) -> Decimal | None:
    """USD for one sample with this usage; None where price or counts are not known.

    What the provider itself says that it charged goes before any table.
    """
    if usage.cost_usd is not None:
        return usage.cost_usd
    if price is None:
        return None
    prompt = price.cost(usage.prompt_tokens, 0, usage.cached_tokens, batch=batch)
    both = price.cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, batch=batch)
    billed = prompt_tokens_billed(usage)
    if prompt is None or both is None or billed is None:
        return None
    return both - prompt + (prompt * billed / usage.prompt_tokens if usage.prompt_tokens else 0)


def prompt_tokens_billed(usage: Usage) -> int | None:
    """The prompt tokens that this sample adds to the bill: siblings of one request share its prompt."""
    return usage.prompt_tokens if usage.billed_prompt_tokens is None else usage.billed_prompt_tokens


def _publisher(spec: TeacherSpec) -> str | None:
    """Name of the provider in `genai-prices`."""
    if spec.driver in ("anthropic", "gemini"):
        return {"anthropic": "anthropic", "gemini": "google"}[spec.driver]
    if spec.driver != "openai":
        return None
    provider = PROVIDERS.get(str(spec.options.get("provider", "generic")))
    return None if provider is None else provider.prices


def _published(provider: str, model: str) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import TimeOfDateConstraint

    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    now = datetime.now(UTC)
    rates: list[Rate] = []
    if isinstance(found.prices, list):
        # Hours of the day become rates of their own; what began on some date is resolved to today's.
        for one in found.prices:
            if isinstance(one.constraint, TimeOfDateConstraint):
                hours = (one.constraint.start_time, one.constraint.end_time)
                rates += _rates(one.prices, hours=hours)
            elif one.constraint is None or one.constraint.active(now):
                rates = [rate for rate in rates if rate.hours_utc] + list(_rates(one.prices))
        rates.sort(key=lambda rate: rate.hours_utc is not None)
    else:
        rates += _rates(found.prices)
    if found.price_variants:
        rates += _rates(found.get_prices(now, {"processing": "batch"}), batch=True)
    source = f"genai-prices {version('genai-prices')}, {now:%Y-%m-%d}"
    return Price(source=source, rates=tuple(rates)) if rates else None


def _rates(
    prices: "ModelPrice", batch: bool = False, hours: tuple[time, time] | None = None
) -> Iterator[Rate]:
    fields = (prices.input_mtok, prices.output_mtok, prices.cache_read_mtok)
    starts = sorted({0, *(tier.start for field in fields for tier in getattr(field, "tiers", ()))})
    for start in starts:
        dear, made, cheap = (_at(field, start) for field in fields)
        if dear is not None and made is not None:
            yield Rate(
                input=dear, output=made, cached_input=cheap, batch=batch, prompt_over=start, hours_utc=hours
            )


def _at(field: Any, start: int) -> Decimal | None:
    """The price of a tier: crossing its start makes it hold for all tokens of the request."""
    if field is None or isinstance(field, Decimal):
        return field
    found: Decimal = field.base
    for tier in field.tiers:
        if tier.start <= start and start:
            found = tier.price
    return found
