"""A run as one SVG: for each case of a measure a panel of bars, on a logarithmic axis where they differ widely."""

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from tests.bench.readings import FIGURES, Readings, Spread
from tests.bench.report import RATIOS, Run, limit_of, number, title_of

SHOWN = {
    "answers": "cpu_us_per_row",
    "slots": "busy_share_saturated",
    "routes": "cpu_us_per_token",
    "scale": "cpu_us_per_row",
}
"""Which figure of a measure is drawn."""

_WIDTH, _LEFT, _RIGHT = 860, 190, 210
_BAR, _GAP, _HEAD = 18, 8, 44
_OURS, _OTHERS = "ours", "others"

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .head { font-weight: 600; }
.note { fill: #59636e; font-size: 12px; } .page { fill: #ffffff; }
.ours { fill: #1f6feb; } .others { fill: #8c959f; } .range { stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .note { fill: #9198a1; } .range { stroke: #e6edf3; }
.page { fill: #0d1117; } .others { fill: #6e7681; } }
"""


def plot(run: Run) -> str:
    """An SVG of its own, no font or script from elsewhere."""
    parts: list[str] = []
    top = 16.0
    for measure, figure in SHOWN.items():
        for case in run.readings.cases(measure):
            panel = list(_panel(run.readings, measure, case, figure, top))
            if panel:
                parts += panel
                top += _HEAD + len(_drawn(run.readings, measure, case, figure)) * (_BAR + _GAP) + 10
    note = f"{run.told.get('when', '')}, {run.told.get('commit', '')}: medians; the thin line is smallest to largest"
    parts.append(_text(16, top + 14, note, "note"))
    height = top + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
        f"<title>Retort's benchmark</title><style>{_STYLE}</style>"
        f'<rect class="page" width="{_WIDTH}" height="{height:.0f}"/>' + "".join(parts) + "</svg>\n"
    )


def _drawn(readings: Readings, measure: str, case: str, figure: str) -> list[tuple[str, Spread]]:
    found = [
        (name, readings.spread(measure, case, name, figure)) for name in readings.contenders(measure, case)
    ]
    return [(name, spread) for name, spread in found if spread is not None and spread.high > 0]


def _panel(readings: Readings, measure: str, case: str, figure: str, top: float) -> Iterator[str]:
    drawn = _drawn(readings, measure, case, figure)
    if not drawn:
        return
    # A reading can be nothing at all: less CPU than the clock's step.
    low = min(value for _, s in drawn for value in (s.low, s.median, s.high) if value > 0)
    high = max(s.high for _, s in drawn)
    logarithmic = high > 20 * low
    heading, unit = FIGURES[figure]
    axis = ", logarithmic" if logarithmic else ""
    yield _text(16, top + 16, f"{case}: {heading}{axis}", "head")

    def place(value: float) -> float:
        if logarithmic:
            floor = low / 3
            share = math.log(max(value, floor) / floor) / math.log(high / floor)
        else:
            share = value / high
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    y = top + _HEAD - 16
    for name, spread in drawn:
        kind = _OURS if name.startswith("retort") else _OTHERS
        end, middle = place(spread.median), y + _BAR / 2
        yield _text(_LEFT - 8, middle + 4, title_of(name), anchor="end")
        yield f'<rect class="{kind}" x="{_LEFT}" y="{y:.1f}" width="{end - _LEFT:.1f}" height="{_BAR}" rx="2"/>'
        first, last = place(spread.low), place(spread.high)
        yield f'<line class="range" x1="{first:.1f}" x2="{last:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        label = f"{number(spread.median)} {unit}"
        limit = limit_of([name for name, _ in drawn])
        ratio = readings.ratio(measure, case, name, figure, limit) if limit and figure in RATIOS else None
        if ratio is not None and name != limit:
            label += f"  × {number(ratio.median)}"
        yield _text(last + 8, middle + 4, label)
        y += _BAR + _GAP


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'
