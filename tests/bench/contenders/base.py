"""What a contender is: it is given prompts and a teacher, and told to have them answered."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.null_teacher import Shape
from tests.bench.process_tree import Used

_cores = sorted(os.sched_getaffinity(0))
ALL_CORES = set(_cores)
TEACHER_CORE, CORE = ({_cores[0]}, {_cores[1]}) if len(_cores) > 1 else (None, None)
"""Where teachers and the harness run, and where contenders do; None: anywhere, for there is one core."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Task:
    """`rows` prompts of one answer each, by the teacher at `base_url`, with at most `in_flight` calls at a time.

    `folder` is empty: what the contender keeps, it keeps there. `before` is called when the measured span begins.
    """

    rows: int
    shape: Shape
    base_url: str
    in_flight: int
    folder: Path
    before: Callable[[], None] = _nothing

    def prompts(self) -> list[str]:
        return [prompt(i) for i in range(self.rows)]


def prompt(number: int) -> str:
    return (
        f"Question {number}: why is the sky blue in summer, and how would a physicist tell that to a child?"
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """`rows` answered (and recorded, where the contender records); `at_rest`: bytes that it kept for them."""

    rows: int
    used: Used
    at_rest: int | None

    @property
    def cpu(self) -> float:
        return sum(self.used.cpu.values())


class Contender(Protocol):
    """One way to have prompts answered. `durable`: what it answered is still there after a kill.

    `reads_answers_only`: one that asks for nothing but answers, so that the null teacher will do.
    """

    name: str
    title: str
    durable: bool
    most_rows: int | None  # it is not asked for more

    @property
    def reads_answers_only(self) -> bool: ...

    def prepare(self) -> None:
        """Install what it needs. Raises `Unavailable` with the reason in one line."""
        ...

    def answer(self, task: Task) -> Outcome: ...


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
