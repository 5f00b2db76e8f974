"""What was measured: single readings, their medians and ranges, and the ratios between contenders of one repeat."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

FIGURES: dict[str, tuple[str, str]] = {
    # name: (heading, unit); the order is the order of columns
    "rows_per_second": ("rows/s", "1/s"),
    "cpu_us_per_row": ("CPU µs/row", "µs"),
    "cpu_us_per_row_all": ("with API, broker, database", "µs"),
    "cpu_us_per_token": ("CPU µs/token", "µs"),
    "tokens_per_cpu_second": ("tokens/CPU-s", "1/s"),
    "peak_mb": ("peak MB", "MB"),
    "wire_bytes_per_token": ("wire B/token", "B"),
    "rest_bytes_per_token": ("at rest B/token", "B"),
    "segment_bytes_per_token": ("in segments B/token", "B"),
    "calls_per_row": ("calls/row", ""),
    "busy_share": ("slots busy %", "%"),
    "busy_share_saturated": ("until the last call came %", "%"),
    "best_share": ("best possible %", "%"),
    "of_best": ("of the best possible %", "%"),
    "first_seconds": ("first after s", "s"),
    "p50_ms": ("p50 ms", "ms"),
    "p95_ms": ("p95 ms", "ms"),
    "max_ms": ("max ms", "ms"),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure of one contender in one case of one measure, in one repeat."""

    measure: str
    case: str
    contender: str
    figure: str
    repeat: int
    value: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of the repeats."""

    median: float
    low: float
    high: float

    def overlaps(self, other: "Spread") -> bool:
        return self.low <= other.high and other.low <= self.high


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(median(found), min(found), max(found))


class Readings:
    """All readings of a run."""

    def __init__(self, readings: Iterable[Reading] = ()) -> None:
        self.all = list(readings)

    def add(self, reading: Reading) -> None:
        if reading.figure not in FIGURES:
            raise KeyError(f"there is no figure {reading.figure!r}; there are: {', '.join(FIGURES)}")
        self.all.append(reading)

    def measures(self) -> list[str]:
        return list(dict.fromkeys(r.measure for r in self.all))

    def cases(self, measure: str) -> list[str]:
        return list(dict.fromkeys(r.case for r in self.all if r.measure == measure))

    def contenders(self, measure: str, case: str) -> list[str]:
        return list(dict.fromkeys(r.contender for r in self.all if (r.measure, r.case) == (measure, case)))

    def figures(self, measure: str, case: str) -> list[str]:
        found = {r.figure for r in self.all if (r.measure, r.case) == (measure, case)}
        return [name for name in FIGURES if name in found]

    def values(self, measure: str, case: str, contender: str, figure: str) -> dict[int, float]:
        """Repeat → value."""
        place = (measure, case, contender, figure)
        return {r.repeat: r.value for r in self.all if (r.measure, r.case, r.contender, r.figure) == place}

    def spread(self, measure: str, case: str, contender: str, figure: str) -> Spread | None:
        values = self.values(measure, case, contender, figure)
        return spread(values.values()) if values else None

    def ratio(self, measure: str, case: str, contender: str, figure: str, against: str) -> Spread | None:
        """The contender's value by that of `against`, repeat by repeat: what slows the machine down slows both."""
        mine = self.values(measure, case, contender, figure)
        theirs = self.values(measure, case, against, figure)
        both = [mine[r] / theirs[r] for r in mine if theirs.get(r)]
        return spread(both) if both else None

    def ratio_of_cases(
        self, measure: str, case: str, contender: str, figure: str, of_case: str
    ) -> Spread | None:
        """One contender's value in a case by its value in another, repeat by repeat."""
        mine = self.values(measure, case, contender, figure)
        other = self.values(measure, of_case, contender, figure)
        both = [mine[r] / other[r] for r in mine if other.get(r)]
        return spread(both) if both else None
