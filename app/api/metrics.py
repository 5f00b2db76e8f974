"""Prometheus metrics: this process's requests, and the whole service's jobs and workers out of the database."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.db.metrics import gauges
from app.domain.lifecycle import ExportStatus, JobStatus

router = APIRouter(tags=["operation"])


class Metrics:
    """A registry of its own for each app, so that several can live in one process."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "retort_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "retort_http_request_seconds",
            "Time to the end of the answer.",
            ["method", "route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
            registry=self.registry,
        )
        self.registry.register(_Database(engine))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Database(Collector):
    """Read at each scrape. The names and their meaning stay the same where nothing is there yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("retort_database_up", "1: the database answers.")
        try:
            found = gauges(self._engine)
        except SQLAlchemyError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _by("retort_jobs", "Jobs.", "status", {str(s): 0 for s in JobStatus} | found.jobs)
        yield _by("retort_exports", "Exports.", "status", {str(s): 0 for s in ExportStatus} | found.exports)
        yield _by("retort_lanes_parked", "Teachers of jobs that wait, by reason.", "kind", found.parked)
        counts = found.counts
        completions = CounterMetricFamily(
            "retort_completions", "Completions recorded, over all jobs that are kept.", labels=["outcome"]
        )
        completions.add_metric(["completed"], counts.completed)
        completions.add_metric(["reused"], counts.reused)
        yield completions
        yield GaugeMetricFamily(
            "retort_completions_failed",
            "Failed completions that were not asked for again.",
            value=counts.failed,
        )
        tokens = CounterMetricFamily("retort_tokens", "Tokens, as teachers report them.", labels=["kind"])
        tokens.add_metric(["prompt"], counts.prompt_tokens)
        tokens.add_metric(["completion"], counts.completion_tokens)
        yield tokens
        yield CounterMetricFamily("retort_teacher_calls", "Requests to teachers.", value=counts.calls)
        yield CounterMetricFamily(
            "retort_teacher_retries", "Those of them that were retries.", value=counts.retries
        )
        yield GaugeMetricFamily("retort_workers", "Workers that are alive.", value=found.workers)
        yield GaugeMetricFamily("retort_workers_draining", "Those of them that leave.", value=found.draining)
        yield GaugeMetricFamily(
            "retort_calls_in_flight", "Calls that a crash would repeat.", value=found.in_flight
        )
        yield GaugeMetricFamily(
            "retort_samples_unflushed",
            "Finished samples that wait for their checkpoint.",
            value=found.unflushed,
        )


def _by(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Metrics for Prometheus",
)
def read_metrics(request: Request) -> Response:
    """Sums over all projects: no names, no contents, no key needed. Requests are of this process alone."""
    metrics: Metrics = request.app.state.metrics
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
