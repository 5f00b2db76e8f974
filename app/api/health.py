"""Liveness and readiness."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from app.api.dependencies import ResourcesDep
from app.db.health import schema_problem
from app.domain.version import code_version

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: Literal["ok"] = "ok"
    version: str


class Readiness(BaseModel):
    model_config = ConfigDict(frozen=True)

    status: Literal["ready", "degraded", "unready"] = Field(
        description="Degraded: all works, but without a broker workers find new work later."
    )
    database: str
    broker: str


@router.get("/healthz", response_model=Health, summary="Is the process alive?")
def read_health() -> Health:
    """Says yes while the process can answer at all. Asks nobody else."""
    return Health(version=code_version())


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready"}},
    summary="Can it serve?",
)
def read_readiness(given: ResourcesDep, response: Response) -> Readiness:
    """Ready when the database answers and its schema is the code's own (503 otherwise). A broker that is away only
    degrades it.
    """
    try:
        wrong = schema_problem(given.engine)
    except SQLAlchemyError as error:
        wrong = f"does not answer: {str(error).splitlines()[0]}"
    broker = given.broker_problem()
    if wrong is not None:
        response.status_code = 503
        return Readiness(status="unready", database=wrong, broker=broker or "ok")
    return Readiness(status="ready" if broker is None else "degraded", database="ok", broker=broker or "ok")
