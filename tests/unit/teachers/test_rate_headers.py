"""What providers' headers tell of their limits, in the shapes that they document."""

from datetime import UTC, datetime

import pytest

from app.domain.rates import Limits
from app.teachers.rate_headers import RatesTold, parse

NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


def openai(limit: str, left: str, reset: str, kind: str = "requests") -> dict[str, str]:
    return {
        f"x-ratelimit-{k}-{kind}": v for k, v in (("limit", limit), ("remaining", left), ("reset", reset))
    }


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"content-type": "application/json"}, None),
        (openai("500", "499", "120ms"), RatesTold(Limits(requests=500), 0.0)),
        (openai("14400", "14370", "2m59.56s"), RatesTold(Limits(), 0.0)),  # of a day
        (openai("30000", "0", "1m0s", "tokens"), RatesTold(Limits(tokens=30000), 60.0)),
        (openai("500", "0", "6h0m0s"), RatesTold(Limits(), 0.0)),
        (openai("many", "few", "soon"), RatesTold(Limits(), 0.0)),
    ],
)
def test_openai(headers: dict[str, str], told: RatesTold | None) -> None:
    assert parse(headers, NOW) == told


def test_anthropic() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-01T12:00:20Z",
    }
    assert parse(headers, NOW) == RatesTold(Limits(requests=50, output_tokens=8000), 20.0)
