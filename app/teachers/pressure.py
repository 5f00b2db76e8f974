"""What an engine says of its own load, out of the metrics that it serves for Prometheus."""

import re
from dataclasses import dataclass

from app.errors import TeacherError
from app.teachers.transport import Transport

_SECONDS = 5.0

# Names by engine, newest first; the first one that is there counts, summed over the engines behind one server.
_RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "tgi_batch_current_size",
)
_WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "tgi_queue_size",
)
_PREEMPTED = ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total")
_MEMORY = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
)
_NAMES = "|".join(map(re.escape, (*_RUNNING, *_WAITING, *_PREEMPTED, *_MEMORY)))
_LINE = re.compile(rf"^({_NAMES})(?:\{{[^}}]*\}})?\s+([0-9][0-9.eE+-]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pressure:
    """Sequences that are generated, sequences that wait for it, preemptions since the engine began, and the share of
    its key-value memory that is taken (0 to 1; None: not told)."""

    running: int
    waiting: int
    preemptions: int = 0
    memory: float | None = None


def parse(text: str) -> Pressure | None:
    """None where these are the metrics of no engine that we know."""
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        found.setdefault(name, []).append(float(value))

    def first(names: tuple[str, ...]) -> list[float] | None:
        return next((found[name] for name in names if name in found), None)

    running, waiting = first(_RUNNING), first(_WAITING)
    if running is None or waiting is None:
        return None
    memory = first(_MEMORY)
    return Pressure(
        running=round(sum(running)),
        waiting=round(sum(waiting)),
        preemptions=round(sum(first(_PREEMPTED) or [0.0])),
        memory=None if memory is None else max(memory),
    )


async def read_pressure(root: Transport) -> Pressure | None:
    """`root` is bound to the server, without `/v1`. None where it serves no metrics, or not those of an engine."""
    try:
        reply = await root.get("/metrics", _SECONDS)
    except TeacherError:
        return None
    return parse(reply.body.decode("utf-8", "replace")) if reply.status == 200 else None
