"""The three routes of a vLLM server: what the driver alone spends per token, and what goes over the wire."""

from collections.abc import Iterator

from tests.bench.contenders.base import TEACHER_CORE, Outcome, Task
from tests.bench.contenders.scripts import ROUTES
from tests.bench.null_teacher import Shape
from tests.bench.readings import Reading
from tests.bench.scripted_server import ScriptedServer
from tests.bench.stage import Stage

TITLE = "Routes of a vLLM server, the driver alone"


def case(shape: Shape) -> str:
    return f"{shape.tokens} tokens, k = {shape.k}, by route"


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    shape, rows = Shape(20, 512), stage.sizes.routed
    script = {"tokens": shape.tokens, "max_logprobs": shape.k + 1}
    with stage.scratch() as folder, ScriptedServer(script, folder, TEACHER_CORE) as teacher:
        for route in ROUTES:
            task = Task(rows, shape, f"{teacher.url}/v1", 16, folder / route.name, before=teacher.reset)
            task.folder.mkdir()
            outcome = route.answer(task)
            found = figures(shape, rows, outcome, teacher.stats()["answered_bytes"])
            for figure, value in found.items():
                yield Reading("routes", case(shape), route.name, figure, repeat, value)


def figures(shape: Shape, rows: int, outcome: Outcome, sent: int) -> dict[str, float]:
    if outcome.rows != rows:
        raise RuntimeError(f"{outcome.rows} of {rows} prompts were answered")
    tokens = rows * shape.tokens
    return {
        "cpu_us_per_token": outcome.cpu / tokens * 1e6,
        "tokens_per_cpu_second": tokens / max(outcome.cpu, 0.01),
        "wire_bytes_per_token": sent / tokens,
        "peak_mb": outcome.used.peak_total / 1e6,
    }
