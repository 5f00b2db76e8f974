"""What a job will ask, use, cost and take: ranges, from a sample of its prompts and what its teachers did before."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from app.db.estimates import Past
from app.db.models import Teacher
from app.domain.lifecycle import Execution
from app.domain.prices import Price
from app.recipes import JobSpec

_BYTES_PER_TOKEN = (6.0, 4.0, 2.5)  # few tokens, usual, many


class Range(BaseModel):
    """`likely` null: nothing is known to tell it from. `high` null: there is no bound."""

    model_config = ConfigDict(frozen=True)

    low: float
    likely: float | None
    high: float | None


class Forecast(BaseModel):
    """Over all teachers, prompts that ask for one by name not told apart."""

    model_config = ConfigDict(frozen=True)

    requests: Range = Field(
        description="Fewer where siblings travel in one request; retries are not counted."
    )
    prompt_tokens: Range = Field(description="From the lengths of some of the prompts.")
    completion_tokens: Range = Field(
        description="`likely`: as long as the teachers' answers were so far; `high`: by `max_tokens`."
    )
    cost_usd: Range | None = Field(description="Null: the price of some teacher is not known.")
    seconds: Range | None = Field(
        description="`low`: by limits per minute; `likely`: as fast as the teachers' last jobs. Null: neither is known."
    )


def forecast(
    spec: JobSpec,
    n_prompts: int,
    mean_bytes: float,
    teachers: Sequence[Teacher],
    prices: Mapping[str, Price],
    past: Mapping[str, Past],
) -> Forecast:
    """`prices` and `past`: by the teacher's id, where they are known."""
    each = [
        _of_teacher(spec, n_prompts, mean_bytes, one, prices, past.get(one.id, Past())) for one in teachers
    ]
    costs = [one.cost_usd for one in each if one.cost_usd is not None]
    times = [one.seconds for one in each if one.seconds is not None]
    return Forecast(
        requests=_sum([one.requests for one in each]),
        prompt_tokens=_sum([one.prompt_tokens for one in each]),
        completion_tokens=_sum([one.completion_tokens for one in each]),
        cost_usd=_sum(costs) if len(costs) == len(each) else None,
        # Teachers work side by side.
        seconds=Range(
            low=max(one.low for one in times),
            likely=None
            if len(times) < len(each) or any(one.likely is None for one in times)
            else max(one.likely or 0.0 for one in times),
            high=None,
        )
        if times
        else None,
    )


def _of_teacher(
    spec: JobSpec,
    n_prompts: int,
    mean_bytes: float,
    teacher: Teacher,
    prices: Mapping[str, Price],
    past: Past,
) -> Forecast:
    samples = n_prompts * spec.n
    together = bool((teacher.capabilities or {}).get("native_n")) and spec.elicit is None
    calls = 1 if spec.elicit is None else 2
    requests = Range(
        low=n_prompts if together else samples,
        likely=n_prompts if together else samples,
        high=samples * calls,
    )
    few, usual, many = ((mean_bytes / per) for per in _BYTES_PER_TOKEN)
    prompt = Range(low=requests.low * few, likely=requests.low * usual, high=samples * calls * many)
    longest = spec.sampling.max_tokens
    mean = past.completion_tokens / past.completed if past.completed else None
    if mean is not None and longest is not None:
        mean = min(mean, float(longest))
    answers = Range(
        low=samples,
        likely=None if mean is None else samples * mean,
        high=None if longest is None else float(samples * longest),
    )
    return Forecast(
        requests=requests,
        prompt_tokens=prompt,
        completion_tokens=answers,
        cost_usd=_cost(prices.get(teacher.id), requests, prompt, answers, spec.execution),
        seconds=_seconds(teacher, requests, prompt, answers, past, samples),
    )


def _cost(
    price: Price | None, requests: Range, prompt: Range, answers: Range, execution: Execution
) -> Range | None:
    if price is None:
        return None

    def of(calls: float | None, tokens: float | None, made: float | None) -> float | None:
        if calls is None or tokens is None or made is None:
            return None
        if calls == 0:
            return 0.0
        # Rates can depend on a prompt's length: one mean request is priced, times their number.
        one = price.cost(round(tokens / calls), round(made / calls), batch=execution == Execution.BATCH)
        return None if one is None else float(one) * calls

    low = of(requests.low, prompt.low, answers.low)
    if low is None:
        return None
    likely = of(requests.likely, prompt.likely, answers.likely)
    return Range(low=low, likely=likely, high=of(requests.high, prompt.high, answers.high))


def _seconds(
    teacher: Teacher, requests: Range, prompt: Range, answers: Range, past: Past, samples: int
) -> Range | None:
    limits = (
        (teacher.max_requests_per_minute, requests.low),
        (teacher.max_input_tokens_per_minute, prompt.low),
        (teacher.max_output_tokens_per_minute, answers.low),
    )
    bounds = [60.0 * amount / limit for limit, amount in limits if limit is not None]
    likely = None if past.rows_per_second is None else samples / past.rows_per_second
    if not bounds and likely is None:
        return None
    low = max(bounds, default=0.0)
    return Range(low=low, likely=None if likely is None else max(low, likely), high=None)


def _sum(ranges: Sequence[Range]) -> Range:
    def total(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return Range(
        low=sum(one.low for one in ranges),
        likely=total([one.likely for one in ranges]),
        high=total([one.high for one in ranges]),
    )
