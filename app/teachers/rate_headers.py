"""What the headers of a provider's answers tell of its limits. Pure.

OpenAI and those who copy it: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; the reset is the time until all
of the limit is there again ("6m0s"), so that the period follows from it. Some limits hold for a day: only those for a
minute are taken. Anthropic: `anthropic-ratelimit-{requests,input-tokens,output-tokens}-{limit,remaining,reset}`, for a
minute, the reset as a time (RFC 3339).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from app.domain.rates import Limits

_LONGEST_WAIT = 60.0  # seconds; a longer one is for a day's limit: the API says so itself by a 429
_MINUTE = (45.0, 75.0)  # seconds that a period may seem to have and still be a minute
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ANTHROPIC = {"requests": "requests", "input_tokens": "input-tokens", "output_tokens": "output-tokens"}


@dataclass(frozen=True, slots=True)
class RatesTold:
    """`limits`: per minute. `wait`: seconds until something is left again; 0 where something is."""

    limits: Limits
    wait: float


def parse(headers: Mapping[str, str], now: datetime | None = None) -> RatesTold | None:
    """None where they tell nothing. Header names are in lower case."""
    if any(name.startswith("anthropic-ratelimit-") for name in headers):
        return _anthropic(headers, now or datetime.now(UTC))
    if any(name.startswith("x-ratelimit-remaining-") for name in headers):
        return _openai(headers)
    return None


def _openai(headers: Mapping[str, str]) -> RatesTold:
    limits: dict[str, int] = {}
    wait = 0.0
    for kind in ("requests", "tokens"):
        limit, left = (_whole(headers.get(f"x-ratelimit-{what}-{kind}")) for what in ("limit", "remaining"))
        reset = _duration(headers.get(f"x-ratelimit-reset-{kind}"))
        if limit is None or left is None or reset is None:
            continue
        if left <= 0 and reset <= _LONGEST_WAIT:
            wait = max(wait, reset)
        if limit > left and _MINUTE[0] <= reset * limit / (limit - left) <= _MINUTE[1]:
            limits[kind] = limit
    return RatesTold(Limits(**limits), wait)


def _anthropic(headers: Mapping[str, str], now: datetime) -> RatesTold:
    limits: dict[str, int] = {}
    wait = 0.0
    for ours, theirs in _ANTHROPIC.items():
        limit, left = (
            _whole(headers.get(f"anthropic-ratelimit-{theirs}-{what}")) for what in ("limit", "remaining")
        )
        if limit:
            limits[ours] = limit
        if left is not None and left <= 0:
            reset = _until(headers.get(f"anthropic-ratelimit-{theirs}-reset"), now)
            wait = max(wait, reset if reset <= _LONGEST_WAIT else 0.0)
    return RatesTold(Limits(**limits), wait)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _duration(text: str | None) -> float | None:
    """Seconds of `1h2m3.5s` or `120ms`, or of a bare number."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _until(text: str | None, now: datetime) -> float:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return 0.0
    return max(0.0, (found.replace(tzinfo=found.tzinfo or UTC) - now).total_seconds())
