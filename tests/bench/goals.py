"""The numbers to hold, each as a reading or a ratio of one run and a bound. They are shown, never a test's verdict."""

from dataclasses import dataclass

from tests.bench.readings import Readings, Spread


@dataclass(frozen=True, slots=True)
class Goal:
    """`against`: the contender whose figure of the same case divides; None: the figure itself counts.

    `of_case`: the case whose figure of the same contender divides, instead.
    """

    words: str
    measure: str
    case: str
    contender: str
    figure: str
    bound: float
    at_most: bool = True
    against: str | None = None
    of_case: str | None = None

    def found(self, readings: Readings) -> Spread | None:
        if self.against is not None:
            return readings.ratio(self.measure, self.case, self.contender, self.figure, self.against)
        if self.of_case is not None:
            return readings.ratio_of_cases(self.measure, self.case, self.contender, self.figure, self.of_case)
        return readings.spread(self.measure, self.case, self.contender, self.figure)

    def holds(self, found: Spread) -> bool:
        """By the median."""
        return found.median <= self.bound if self.at_most else found.median >= self.bound


GOALS = (
    Goal(
        "worker's CPU per durable row without logprobs, by the bare aiohttp client's",
        *("answers", "64 tokens, no logprobs", "retort", "cpu_us_per_row", 2.5),
        against="aiohttp",
    ),
    Goal(
        "the same with k = 20 by chat JSON, by a bare parsing client's",
        *("answers", "64 tokens, k = 20", "retort", "cpu_us_per_row", 1.7),
        against="aiohttp",
    ),
)
