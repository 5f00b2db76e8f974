"""Answers of an instant teacher: what one row costs each contender, and how many it makes in a second on one core."""

from collections.abc import Iterator

from tests.bench.contenders.base import Outcome
from tests.bench.null_teacher import Shape, Traffic
from tests.bench.readings import Reading
from tests.bench.stage import Stage

TITLE = "Answers of an instant teacher"


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    for shape in stage.sizes.rows:
        taking_part = [one for one in stage.contenders() if one.reads_answers_only]
        # Every other time backwards: what drifts in a machine then pulls a ratio up as often as down.
        for contender in taking_part if repeat % 2 == 0 else reversed(taking_part):
            slow = contender.most_rows is not None or contender.name == "httpx"
            rows = (stage.sizes.slow_rows if slow else stage.sizes.rows)[shape]
            outcome, traffic = stage.answer(contender, shape, rows)
            for figure, value in figures(shape, outcome, traffic).items():
                yield Reading("answers", case(shape), contender.name, figure, repeat, value)


def case(shape: Shape) -> str:
    signal = f"k = {shape.k}" if shape.k else "no logprobs"
    return f"{shape.tokens} tokens, {signal}"


def figures(shape: Shape, outcome: Outcome, traffic: Traffic) -> dict[str, float]:
    """The gated figure is the CPU of the process tree that answers: the client, or Retort's worker."""
    rows, used = outcome.rows, outcome.used
    own = used.cpu.get("worker", used.cpu.get("client", 0.0))
    tokens = rows * shape.tokens
    found = {
        "rows_per_second": rows / used.wall,
        "cpu_us_per_row": own / rows * 1e6,
        "cpu_us_per_row_all": outcome.cpu / rows * 1e6,
        "peak_mb": used.peak_total / 1e6,
        "calls_per_row": traffic.calls / rows,
    }
    if traffic.sent:
        found["wire_bytes_per_token"] = (traffic.received + traffic.sent) / tokens
    if outcome.at_rest is not None:
        found["rest_bytes_per_token"] = outcome.at_rest / tokens
    return found
