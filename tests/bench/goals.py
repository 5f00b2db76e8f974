"""The numbers to hold, each as a reading or a ratio of one run and a bound. They are shown, never a test's verdict."""

from dataclasses import dataclass

from tests.bench.readings import Readings, Spread

SLOTS = "64 slots, 10 ms per token, 16–256 tokens"


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
    *(
        Goal(
            f"slot-seconds of a saturated engine that a job keeps busy, shard borders included, %, {what}",
            *("slots", SLOTS, contender, "busy_share_saturated", 98.0),
            at_most=False,
        )
        for contender, what in (("retort", "driver openai"), ("retort-vllm", "driver vllm"))
    ),
    Goal(
        "tokens per CPU-second by the compact route, by those of chat JSON, k = 20",
        *("routes", "512 tokens, k = 20, by route", "compact", "tokens_per_cpu_second", 10.0),
        at_most=False,
        against="chat",
    ),
    Goal(
        "bytes per token on the wire by the compact route, k = 20",
        *("routes", "512 tokens, k = 20, by route", "compact", "wire_bytes_per_token", 180.0),
    ),
    *(
        Goal(
            f"worker's CPU per row in a job of {rows:,} rows, by that of 10,000",
            *("scale", f"{rows:,} rows", "retort", "cpu_us_per_row", 1.1),
            of_case="10,000 rows",
        )
        for rows in (100_000, 1_000_000)
    ),
    *(
        Goal(
            f"peak memory of an export of {name}, MB",
            *("export", name, "retort", "peak_mb", 600.0),
        )
        for name in ("100,000 rows of text", "1,000,000 rows of text", "100,000 rows, 64 tokens, k = 20")
    ),
    *(
        Goal(
            f"speed of an export of {name}, by a bare pyarrow writer's",
            *("export", name, "retort", "rows_per_second", 0.6),
            at_most=False,
            against="pyarrow",
        )
        for name in (
            "100,000 rows of text",
            "1,000,000 rows of text",
            "10,000 rows, 64 tokens, k = 20",
            "100,000 rows, 64 tokens, k = 20",
        )
    ),
)
