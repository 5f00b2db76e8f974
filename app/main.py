"""The only wiring of the API: `uvicorn --factory app.main:from_environment`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.api import appending, health, jobs, problems, projects, prompt_sets, teachers
from app.api.edge import Edge
from app.api.resources import Resources
from app.api.waking import Waker
from app.broker import celery_app, wake_through
from app.db.session import connect
from app.domain.version import code_version
from app.services.ports import OpenTeacher, Wake, wake_nobody
from app.settings import Settings
from app.storage.places import open_storage
from app.teachers.base import Teacher, TeacherSpec


def create_app(settings: Settings, wake: Wake | None = None) -> FastAPI:
    """The service over these settings. The database is not touched before the first request."""
    waker = Waker(wake or _wake(settings))
    engine = connect(settings.database)
    made = FastAPI(title="Retort", version=code_version(), lifespan=_lifespan)
    made.state.waker = waker
    made.state.resources = Resources(
        engine=engine,
        storage=open_storage(settings.storage_url),
        wake=waker,
        broker_problem=lambda: None,
        open_teacher=_open_teacher(settings),
        check_teacher=lambda spec: None,
        shard_size=settings.engine.shard_size,
        max_body_bytes=settings.max_body_bytes,
    )
    problems.install(made)
    for module in (projects, prompt_sets, appending, teachers, jobs, health):
        made.include_router(module.router)
    made.add_middleware(Edge, max_body_bytes=settings.max_body_bytes, observe=lambda *_: None)
    return made


def from_environment() -> FastAPI:
    """The service as the environment and `.env` describe it."""
    return create_app(Settings())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.waker.stop()
    app.state.resources.engine.dispose()


def _wake(settings: Settings) -> Wake:
    if settings.broker_url is None:
        return wake_nobody
    return wake_through(celery_app(settings.broker_url.get_secret_value(), settings.data_dir))


def _open_teacher(settings: Settings) -> OpenTeacher:
    def opened(spec: TeacherSpec) -> Teacher:
        from app.teachers import TeacherAccess, build

        return build(spec, TeacherAccess(settings.loopback_allowed, settings.addresses.allow_private))

    return opened
