"""The cost of a row in jobs of growing size, one after the other in one service."""

from collections.abc import Iterator

from app.db.session import connect
from tests.bench.contenders.base import Task, bytes_in
from tests.bench.contenders.retort import database_bytes, recorded
from tests.bench.readings import Reading
from tests.bench.stage import SHAPES, Stage

TITLE = "The cost of a row as jobs grow"


def case(rows: int) -> str:
    return f"{rows:,} rows"


def run(stage: Stage, repeat: int) -> Iterator[Reading]:
    shape = SHAPES[0]
    for contender in stage.services():
        with stage.scratch() as folder, contender.running(folder, stage.in_flight) as service:
            service.register(stage.null.url(shape))
            for rows in stage.sizes.scale:
                task = Task(rows, shape, stage.null.url(shape), stage.in_flight, folder)
                prompt_set = service.load_prompts(task.prompts())
                database = connect(service.database_url)
                before = database_bytes(database) + bytes_in(folder / "storage")
                job, used = service.run_job(prompt_set, task)
                kept = database_bytes(database) + bytes_in(folder / "storage") - before
                if recorded(database, job["id"]) != rows:
                    raise RuntimeError(f"{contender.title} recorded not all of {rows} rows")
                database.dispose()
                found = {
                    "rows_per_second": rows / used.wall,
                    "cpu_us_per_row": used.cpu["worker"] / rows * 1e6,
                    "cpu_us_per_row_all": sum(used.cpu.values()) / rows * 1e6,
                    "peak_mb": used.peak["worker"] / 1e6,
                    "rest_bytes_per_token": kept / rows / shape.tokens,
                }
                for figure, value in found.items():
                    yield Reading("scale", case(rows), contender.name, figure, repeat, value)
