"""Whether two runs say the same: ratio by ratio, whether their ranges meet."""

from itertools import product

from tests.bench.readings import Spread
from tests.bench.report import RATIOS, Run, limit_of, title_of, told

Row = tuple[str, str, str, str, str]


def compare(first: Run, second: Run) -> tuple[list[Row], bool]:
    """(case, contender, figure, first, second, verdict) of every ratio that both have; whether all ranges meet."""
    rows: list[Row] = []
    agree = True
    for measure in first.readings.measures():
        for case in first.readings.cases(measure):
            contenders = first.readings.contenders(measure, case)
            limit = limit_of(contenders)
            for contender, figure in product(contenders, RATIOS):
                if limit is not None and contender != limit:
                    one = first.readings.ratio(measure, case, contender, figure, limit)
                    two = second.readings.ratio(measure, case, contender, figure, limit)
                    if one is None or two is None:
                        continue
                    meets = one.overlaps(two)
                    agree = agree and meets
                    rows.append(
                        (f"{case}, {title_of(contender)}", figure, told(one), told(two), _verdict(one, two))
                    )
    return rows, agree


def _verdict(one: Spread, two: Spread) -> str:
    if one.overlaps(two):
        return "agree"
    return f"{two.median / one.median - 1:+.0%}"
