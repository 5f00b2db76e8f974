"""What a measure works with: the contenders that take part, a folder for each run, the null teacher, sizes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.contenders import CONTENDERS, SERVICES
from tests.bench.contenders.base import Contender, Outcome, Task
from tests.bench.contenders.retort import Retort
from tests.bench.null_teacher import NullTeacher, Shape, Traffic, Unavailable

SHAPES = (Shape(0, 64), Shape(20, 64), Shape(0, 512), Shape(20, 512))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done. `rows[shape]` prompts for each contender; `slow_rows` at most for the slow ones."""

    rows: dict[Shape, int]  # shapes that are measured
    slow_rows: dict[Shape, int]
    scale: tuple[int, ...]
    slots: int
    slot_rows: int
    seconds_per_token: float
    routed: int
    submitted: int
    exported: int
    large: int


NORMAL = Sizes(
    rows={SHAPES[0]: 20_000, SHAPES[1]: 2000, SHAPES[2]: 20_000, SHAPES[3]: 400},
    slow_rows={SHAPES[0]: 2000, SHAPES[1]: 300, SHAPES[2]: 1000, SHAPES[3]: 40},
    scale=(1_000, 10_000, 100_000),
    slots=64,
    slot_rows=3000,
    seconds_per_token=0.01,
    routed=100,
    submitted=20_000,
    exported=20_000,
    large=100_000,
)
SMOKE = Sizes(
    rows={SHAPES[1]: 24},
    slow_rows={SHAPES[1]: 8},
    scale=(16, 32),
    slots=4,
    slot_rows=24,
    seconds_per_token=0.0005,
    routed=2,
    submitted=100,
    exported=50,
    large=100,
)


def with_largest(sizes: Sizes, rows: int) -> Sizes:
    """The measure `scale` goes up to so many rows, by powers of ten; `export` has so many."""
    steps = [step for step in (1_000, 10_000, 100_000, 1_000_000) if step < rows]
    return replace(sizes, scale=(*steps, rows), large=rows)


@dataclass
class Stage:
    """`left_out`: contender → why, in one line."""

    folder: Path
    sizes: Sizes
    null: NullTeacher
    wanted: tuple[str, ...]
    in_flight: int = 128
    flush_sleep: float = 0.0
    peers: bool = True  # whether they take part now
    left_out: dict[str, str] = field(default_factory=dict)
    _prepared: set[str] = field(default_factory=set)
    _runs: int = 0

    def contenders(self) -> Iterator[Contender]:
        """Those that take part, each prepared."""
        for name in self.wanted:
            contender = CONTENDERS[name]
            if name in self.left_out or (contender.most_rows is not None and not self.peers):
                continue
            if name not in self._prepared:
                try:
                    contender.prepare()
                except Unavailable as reason:
                    self.left_out[name] = str(reason)
                    continue
                self._prepared.add(name)
            yield self._slowed(contender) if isinstance(contender, Retort) else contender

    def services(self) -> Iterator[Retort]:
        yield from (self._slowed(SERVICES[name]) for name in self.wanted if name in SERVICES)

    def _slowed(self, service: Retort) -> Retort:
        return replace(service, flush_sleep=self.flush_sleep)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        self._runs += 1
        made = self.folder / f"run-{self._runs}"
        made.mkdir(parents=True)
        try:
            yield made
        finally:
            shutil.rmtree(made)

    def answer(self, contender: Contender, shape: Shape, rows: int) -> tuple[Outcome, Traffic]:
        """Have the null teacher's answers fetched; what went over the wire besides."""
        self.null.traffic()
        with self.scratch() as folder:
            outcome = contender.answer(Task(rows, shape, self.null.url(shape), self.in_flight, folder))
        traffic = self.null.traffic()
        if outcome.rows != rows:
            raise RuntimeError(f"{contender.title} answered {outcome.rows} of {rows} prompts")
        return outcome, traffic
