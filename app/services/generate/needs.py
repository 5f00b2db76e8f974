"""What a call may use of a budget at the most, what it likely takes of rates, and what it has used. Pure."""

from dataclasses import dataclass

from app.db.lanes import LaneSpec
from app.domain.budget import NOTHING, Use
from app.domain.prices import NANO, Price, nano
from app.domain.rates import NO_AMOUNTS, Amounts
from app.errors import PermanentTeacherError, RateLimited, TeacherUnavailable
from app.services.generate.work import Unit
from app.teachers.base import Capabilities, Generation
from app.teachers.prices import price_of, prompt_tokens_billed

_TEMPLATE_TOKENS = 256  # that a chat template may add to a prompt
_BYTES_PER_TOKEN = 3  # text of most languages has more: a guess for rates, never for budgets
_UNBOUNDED_ANSWER = (
    4096  # tokens, where neither job nor teacher bounds it; a job with a cap of tokens bounds it
)


@dataclass(frozen=True, slots=True)
class Need:
    """`most`: reserved of the job's budget. `likely`: taken of the teacher's rates, and set right afterwards."""

    most: Use
    likely: Amounts


def need_of(unit: Unit, lane: LaneSpec, found: Capabilities) -> Need:
    """Of one call for all samples of the unit."""
    samples = len(unit.sample_indices)
    elicit = lane.stages[unit.run.claim.stage].elicit
    answer = _longest_answer(unit, lane, found)
    prompt = (
        unit.prompt_bytes + _TEMPLATE_TOKENS + (0 if elicit is None else len(elicit.instruction.encode()))
    )
    if found.max_model_len is not None:
        prompt = min(prompt, found.max_model_len)
        answer = min(answer, found.max_model_len)
    if elicit is not None:
        # Two requests at the most, the second with the trace as a part of its prompt.
        prompt, answer = 2 * prompt + answer, answer + elicit.max_reasoning_tokens
    together = found.native_n and elicit is None and not _greedy(unit)
    requests = (1 if together else samples) * (1 if elicit is None else 2)
    return Need(
        most=Use(
            requests=samples * (1 if elicit is None else 2),
            tokens=samples * (prompt + answer),
            nanousd=samples * dearest(lane.price, prompt, answer),
        ),
        likely=Amounts(requests, requests * (unit.prompt_bytes // _BYTES_PER_TOKEN + 16), samples * answer),
    )


def dearest(price: Price | None, prompt_tokens: int, completion_tokens: int) -> int:
    """10⁻⁹ USD, by the highest of the rates that may hold; 0 where the price is not known."""
    if price is None:
        return 0
    most = 0
    for rate in price.rates:
        if not rate.batch and rate.prompt_over < max(1, prompt_tokens):
            dear = max(rate.input, rate.cached_input or rate.input)
            whole = (prompt_tokens * dear + completion_tokens * rate.output) * NANO
            most = max(most, -int(-whole // 1_000_000))
    return most


def used_by(unit: Unit, lane: LaneSpec, need: Need, result: list[Generation] | Exception | None) -> Use:
    """What the call has used. Where nobody can know, it is all that it may have used."""
    match result:
        case list() if result:
            return _used(unit, lane, need, result)
        case RateLimited() | TeacherUnavailable():
            return NOTHING  # it was not taken
        case PermanentTeacherError():
            return Use(requests=need.likely.requests)  # refused for what it says: nothing was generated
    return need.most


def taken_by(unit: Unit, need: Need, result: list[Generation] | Exception | None) -> Amounts:
    """What of the teacher's rates the call has taken. A refused request counts as one, as providers do."""
    match result:
        case list() if result:
            prompts = [prompt_tokens_billed(made.usage) for made in result]
            answers = [made.usage.completion_tokens for made in result]
            likely = need.likely
            return Amounts(
                _requests(unit, result),
                likely.input_tokens if None in prompts else sum(one or 0 for one in prompts),
                likely.output_tokens if None in answers else sum(one or 0 for one in answers),
            )
        case TeacherUnavailable():
            return NO_AMOUNTS
        case RateLimited() | PermanentTeacherError():
            return Amounts(requests=need.likely.requests)
    return need.likely


def _used(unit: Unit, lane: LaneSpec, need: Need, made: list[Generation]) -> Use:
    samples = len(unit.sample_indices)
    lost = max(0, samples - len(made))  # nobody can know what became of these
    tokens, costs = lost * need.most.tokens // samples, lost * need.most.nanousd // samples
    unknown = unpriced = False
    for one in made:
        prompt, answer = prompt_tokens_billed(one.usage), one.usage.completion_tokens
        unknown = unknown or prompt is None or answer is None
        tokens += (prompt or 0) + (answer or 0)
        cost = nano(price_of(lane.price, one.usage))
        unpriced = unpriced or cost is None
        costs += cost or 0
    return Use(
        _requests(unit, made),
        need.most.tokens if unknown else tokens,
        need.most.nanousd if unpriced else costs,
    )


def _requests(unit: Unit, made: list[Generation]) -> int:
    """Siblings of one request share its hash; drawn-out traces and greedy answers are asked for one by one."""
    if any(one.calls > 1 for one in made) or _greedy(unit):
        return sum(one.calls for one in made)
    return len({one.request_hash for one in made})


def _greedy(unit: Unit) -> bool:
    return unit.sampling.temperature is not None and unit.sampling.temperature < 1e-5


def _longest_answer(unit: Unit, lane: LaneSpec, found: Capabilities) -> int:
    """Tokens of one sample, reasoning included."""
    most = unit.sampling.max_tokens or found.max_model_len or _UNBOUNDED_ANSWER
    thinking = lane.spec.options.get("thinking")
    given = thinking if isinstance(thinking, dict) else {}
    budgets = [unit.sampling.thinking_token_budget, given.get("budget_tokens"), given.get("thinkingBudget")]
    return most + max((one for one in budgets if isinstance(one, int)), default=0)
