"""The only wiring of the API: `uvicorn --factory app.main:from_environment`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute

from app.api import (
    appending,
    audit,
    completions,
    docs_pages,
    events,
    exports,
    health,
    jobs,
    lineage,
    metrics,
    openapi,
    policy,
    problems,
    projects,
    prompt_sets,
    takedowns,
    teachers,
)
from app.api.bodies import sound_body
from app.api.edge import Edge
from app.api.metrics import Metrics
from app.api.parameters import no_unknown_parameters
from app.api.resources import Resources
from app.api.stopping import Stopping
from app.api.waking import Waker
from app.broker import celery_app, problem_of, wake_through
from app.db.session import connect
from app.domain.version import code_version
from app.services.ports import BrokerProblem, OpenTeacher, Wake, no_broker, wake_nobody
from app.settings import Settings
from app.storage.places import open_storage
from app.teachers import TeacherAccess, build

ROUTERS = (
    projects,
    prompt_sets,
    appending,
    teachers,
    jobs,
    events,
    completions,
    exports,
    lineage,
    takedowns,
    policy,
    audit,
    health,
    metrics,
    docs_pages,
)


def create_app(settings: Settings, wake: Wake | None = None) -> FastAPI:
    """The service over these settings. Neither database nor broker is touched before the first request."""
    publish, broker_problem = _broker(settings)
    engine = connect(settings.database)
    made = FastAPI(
        title="Retort",
        version=code_version(),
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
        dependencies=[Depends(no_unknown_parameters), Depends(sound_body)],
        lifespan=_lifespan,
    )
    made.state.waker = Waker(wake or publish)
    made.state.metrics = Metrics(engine)
    made.state.resources = Resources(
        engine=engine,
        storage=open_storage(settings.storage_url),
        wake=made.state.waker,
        broker_problem=broker_problem,
        open_teacher=_open_teacher(settings),
        stopping=Stopping(),
        shard_size=settings.engine.shard_size,
        policy_rules=settings.policy,
        max_body_bytes=settings.max_body_bytes,
    )
    problems.install(made, _routes())
    openapi.install(made)
    for module in ROUTERS:
        made.include_router(module.router)
    made.add_middleware(Edge, max_body_bytes=settings.max_body_bytes, observe=made.state.metrics.observe)
    return made


def from_environment() -> FastAPI:
    """The service as the environment and `.env` describe it."""
    return create_app(Settings())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    with app.state.resources.stopping.listening():
        yield
    app.state.waker.stop()
    app.state.resources.engine.dispose()


def _routes() -> list[APIRoute]:
    return [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]


def _broker(settings: Settings) -> tuple[Wake, BrokerProblem]:
    if settings.broker_url is None:
        return wake_nobody, no_broker
    celery = celery_app(settings.broker_url.get_secret_value(), settings.data_dir)
    return wake_through(celery), problem_of(celery)


def _open_teacher(settings: Settings) -> OpenTeacher:
    access = TeacherAccess(
        allow_loopback=settings.loopback_allowed, allow_private=settings.addresses.allow_private
    )
    return lambda spec: build(spec, access)
