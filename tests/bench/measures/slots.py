"""A teacher with so many slots and a time per token: the share of its slot-seconds that each contender keeps busy.

The lengths of the answers differ. No contender can fill the slots while the last answers are made: therefore the share
until the last call came stands beside the whole one, and what the whole one could be at best. The span begins with the
first prompt's call, after a driver's probes.
"""

import heapq
from collections.abc import Iterator
from pathlib import Path

from app.teachers.scripted import Script, length_of
from tests.bench.contenders.base import TEACHER_CORE, Contender, Task, prompt
from tests.bench.null_teacher import Shape
from tests.bench.readings import Reading
from tests.bench.scripted_server import ScriptedServer
from tests.bench.stage import Stage

TITLE = "Slots of an engine kept busy"
_LONGEST, _SHORTEST = 256, 16


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    sizes = stage.sizes
    script = {
        "tokens": _LONGEST,
        "shortest": _SHORTEST,
        "slots": sizes.slots,
        "counted": "Question",
        "delay_per_token": sizes.seconds_per_token,
    }
    case = (
        f"{sizes.slots} slots, {sizes.seconds_per_token * 1000:g} ms per token, {_SHORTEST}–{_LONGEST} tokens"
    )
    best = best_share(Script.model_validate(script), sizes.slot_rows)
    for contender in stage.contenders():
        if contender.name == "httpx":  # where the teacher is the limit, both bare clients do the same
            continue
        with stage.scratch() as folder, ScriptedServer(script, folder, TEACHER_CORE) as teacher:
            found = _busy(contender, teacher, sizes.slot_rows, stage.in_flight, folder / "run")
        found["best_share"] = best * 100
        found["of_best"] = 100 * found["busy_share"] / found["best_share"]
        for figure, value in found.items():
            yield Reading("slots", case, contender.name, figure, repeat, value)


def _busy(
    contender: Contender, teacher: ScriptedServer, rows: int, in_flight: int, folder: Path
) -> dict[str, float]:
    folder.mkdir()
    outcome = contender.answer(
        Task(rows, Shape(0, _LONGEST), f"{teacher.url}/v1", in_flight, folder, before=teacher.reset)
    )
    stats = teacher.stats()
    if outcome.rows != rows:
        raise RuntimeError(f"{contender.title} answered {outcome.rows} of {rows} prompts")
    slots = stats["slots"]
    own = outcome.used.cpu.get("worker", outcome.used.cpu.get("client", 0.0))
    return {
        "rows_per_second": rows / outcome.used.wall,
        "cpu_us_per_row": own / rows * 1e6,
        "busy_share": 100 * stats["busy_seconds"] / (slots * stats["span_seconds"]),
        "busy_share_saturated": 100 * stats["fed_busy_seconds"] / (slots * stats["fed_seconds"]),
    }


def best_share(script: Script, rows: int) -> float:
    """Busy share of the slots where each takes the next prompt at once, in order: nobody does better but by luck."""
    assert script.slots is not None
    free_at = [0.0] * script.slots
    busy = 0.0
    for number in range(rows):
        seconds = length_of(prompt(number), script) * script.delay_per_token
        heapq.heapreplace(free_at, free_at[0] + seconds)
        busy += seconds
    return busy / (script.slots * max(free_at))
