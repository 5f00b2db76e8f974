"""What calls cost: published rates, own rates, unknown ones."""

from datetime import UTC, datetime, time
from decimal import Decimal

import pytest
from pydantic import JsonValue

from app.domain.prices import Price, Rate, dollars, nano, rate_for
from app.domain.teacher import TeacherSpec
from app.teachers.base import Usage
from app.teachers.chat_answers import usage_of
from app.teachers.prices import price_of, price_of_teacher

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def rate(**given: object) -> Rate:
    return Rate.model_validate({"input": "1", "output": "10"} | given)


def teacher(**given: object) -> TeacherSpec:
    values: dict[str, object] = {"name": "t", "driver": "openai", "model": "gpt-4o-mini"}
    return TeacherSpec(**(values | given))  # type: ignore[arg-type]


def test_a_cost_is_exact_and_an_unknown_one_is_none() -> None:
    price = Price(source="teacher", rates=(rate(input="0.15", output="0.6", cached_input="0.075"),))
    assert price.cost(1000, 100, 200) == Decimal("0.000195")
    assert nano(price.cost(1000, 100, 200)) == 195_000
    assert price.cost(None, 100) is None
    assert price.cost(1000, None) is None
    assert price_of(None, Usage(1000, 100)) is None
    assert price_of(price, Usage(1000)) is None
    assert price_of(price, Usage(0, 0)) == 0
    assert nano(None) is None
    assert dollars(None) is None


def test_the_last_rate_that_fits_counts() -> None:
    rates = (
        rate(),
        rate(input="2", prompt_over=200_000),
        rate(input="3", hours_utc=(time(1), time(4))),
        rate(input="4", hours_utc=(time(22), time(1))),
        rate(input="0.5", batch=True),
    )

    def found(prompt: int, batch: bool, hour: int) -> Decimal:
        fitting = rate_for(rates, prompt, batch, NOON.replace(hour=hour))
        assert fitting is not None
        return fitting.input

    assert found(200_000, False, 12) == 1
    assert found(200_001, False, 12) == 2
    assert found(10, False, 3) == 3
    assert found(10, False, 4) == 1
    assert found(10, False, 23) == found(10, False, 0) == 4
    assert found(300_000, True, 3) == Decimal("0.5")
    assert rate_for((rate(batch=True),), 10, False, NOON) is None


def test_what_the_provider_charged_goes_before_any_table() -> None:
    assert price_of(None, Usage(10, 10, cost_usd=Decimal("0.25"))) == Decimal("0.25")


def test_siblings_share_the_price_of_their_prompt() -> None:
    told: JsonValue = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
    price = Price(source="teacher", rates=(rate(),))
    shares = [usage_of(told, 3, position) for position in range(3)]
    assert [share.prompt_tokens for share in shares] == [10, 10, 10]
    assert [share.billed_prompt_tokens for share in shares] == [4, 3, 3]
    assert [share.completion_tokens for share in shares] == [3, 2, 2]
    assert sum(cost for share in shares if (cost := price_of(price, share))) == price.cost(10, 7)


def test_reasoning_that_is_counted_beside_the_answer_is_paid_all_the_same() -> None:
    details: dict[str, JsonValue] = {"completion_tokens_details": {"reasoning_tokens": 94}}
    apart: JsonValue = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, **details}
    within: JsonValue = {"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135, **details}
    assert usage_of(apart, 1) == usage_of(within, 1) == Usage(32, 103, 94)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("deepseek", "deepseek-v4-flash"),
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("openrouter", "deepseek/deepseek-r1"),
    ],
)
def test_published_prices_are_found(provider: str, model: str) -> None:
    price = price_of_teacher(teacher(model=model, options={"provider": provider}), None)
    assert price is not None
    assert price.source.startswith("genai-prices ")
    plain = rate_for(price.rates, 100, False, NOON)
    assert plain is not None
    assert 0 < plain.input <= plain.output
    assert Price.model_validate(price.model_dump(mode="json")) == price


def test_the_published_price_of_a_batch_is_half() -> None:
    price = price_of_teacher(teacher(options={"provider": "openai"}), None)
    assert price is not None
    live, batch = price.cost(1000, 1000), price.cost(1000, 1000, batch=True)
    assert live is not None
    assert batch == live / 2


def test_hours_of_the_day_are_kept() -> None:
    price = price_of_teacher(teacher(model="deepseek-v4-pro", options={"provider": "deepseek"}), None)
    assert price is not None
    peak, quiet = (price.cost(1000, 1000, at=NOON.replace(hour=hour)) for hour in (2, 20))
    assert peak is not None
    assert quiet is not None
    assert peak > quiet


def test_own_rates_go_first_and_a_model_of_ones_own_has_no_published_price() -> None:
    own = (rate(),)
    assert price_of_teacher(teacher(options={"provider": "openai"}), own) == Price(
        source="teacher", rates=own
    )
    for spec in (
        teacher(),
        teacher(driver="embedded"),
        teacher(model="no-such-model", options={"provider": "openai"}),
    ):
        assert price_of_teacher(spec, None) is None
