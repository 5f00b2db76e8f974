"""The arithmetic of limits per minute: how much may be granted now, so that no minute holds more than its limit. Pure.

What is granted is written into steps of a second, and a grant is spent within `SPEND_SECONDS`. So what a teacher sees
in any minute was granted in the steps that touch that minute and the seconds before it.
"""

from dataclasses import dataclass

WINDOW_SECONDS = 60
SPEND_SECONDS = 1.0
STEPS = (
    WINDOW_SECONDS + 2
)  # that may hold something which a minute sees: its own, a part of one, one of spending
PACE_SECONDS = (
    3  # a limit's part of so many seconds may be granted at once; else a minute is spent in its first second
)

KINDS = ("requests", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Amounts:
    """Requests, and tokens of prompts and of answers."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def __sub__(self, other: "Amounts") -> "Amounts":
        return Amounts(*(a - b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[int, int, int]:
        return self.requests, self.input_tokens, self.output_tokens

    def covers(self, other: "Amounts") -> bool:
        return all(a >= b for a, b in zip(self.parts(), other.parts(), strict=True))

    def scaled(self, by: float) -> "Amounts":
        return Amounts(*(int(part * by) for part in self.parts()))


NO_AMOUNTS = Amounts()


@dataclass(frozen=True, slots=True)
class Limits:
    """Per minute; None: not limited. `tokens`: of prompts and answers together, as OpenAI counts."""

    requests: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    tokens: int | None = None

    def __bool__(self) -> bool:
        return any(
            limit is not None for limit in (self.requests, self.input_tokens, self.output_tokens, self.tokens)
        )

    def times(self, factor: float) -> "Limits":
        limits = (self.requests, self.input_tokens, self.output_tokens, self.tokens)
        return Limits(*(None if limit is None else max(1, int(limit * factor)) for limit in limits))

    def parts(self) -> tuple[int | None, ...]:
        return self.requests, self.input_tokens, self.output_tokens, self.tokens


UNLIMITED = Limits()


def grant(limits: Limits, used: Amounts, recent: Amounts, wanted: Amounts, at_least: Amounts) -> Amounts:
    """How much of `wanted` may be spent now: all, a part that is enough for one call (`at_least`), or nothing.

    `used`: granted in the last `STEPS` steps; `recent`: in the last `PACE_SECONDS` of them. A call that is larger than
    the limit's part for that time has it for itself; one that is larger than the limit is let through where nothing
    else is in the window, for the teacher to refuse.
    """
    share = 1.0
    fits = True
    for limit, spent, lately, want, need in zip(
        limits.parts(), _four(used), _four(recent), _four(wanted), _four(at_least), strict=True
    ):
        if limit is None:
            continue
        in_window = max(limit - spent, 0 if spent else need)
        in_pace = max(limit * PACE_SECONDS / WINDOW_SECONDS - lately, 0 if lately else need)
        room = max(0.0, min(in_window, in_pace))
        share = min(share, room / want if want else 1.0)
        fits = fits and need <= room
    given = wanted if share >= 1 else wanted.scaled(share)
    if given.covers(at_least):
        return given
    return at_least if fits else NO_AMOUNTS


def _four(amounts: Amounts) -> tuple[int, int, int, int]:
    return (*amounts.parts(), amounts.input_tokens + amounts.output_tokens)
