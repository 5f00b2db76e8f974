"""The measures. Each is a module with `TITLE` and `run(stage, repeat)`, which yields readings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.measures import answers, exports, life, routes, scale, slots
from tests.bench.readings import Reading
from tests.bench.stage import Stage


@dataclass(frozen=True, slots=True)
class Measure:
    title: str
    run: Callable[[Stage, int], Iterator[Reading]]


MEASURES: dict[str, Measure] = {
    "answers": Measure(answers.TITLE, answers.run),
    "slots": Measure(slots.TITLE, slots.run),
    "life": Measure(life.TITLE, life.run),
    "export": Measure(exports.TITLE, exports.run),
    "routes": Measure(routes.TITLE, routes.run),
    "scale": Measure(scale.TITLE, scale.run),
}
