"""What the API works with, put together by the root that starts it: plain values, ports, one engine."""

from dataclasses import dataclass
from typing import cast

from fastapi import Request
from sqlalchemy import Engine

from app.api.stopping import Stopping
from app.policy.rules import PolicyRules
from app.services.ports import BrokerProblem, OpenTeacher, Wake
from app.storage.places import Storage


@dataclass(frozen=True, slots=True)
class Resources:
    engine: Engine
    storage: Storage
    wake: Wake
    broker_problem: BrokerProblem
    open_teacher: OpenTeacher
    stopping: Stopping
    shard_size: int
    policy_rules: PolicyRules
    max_body_bytes: int


def resources(request: Request) -> Resources:
    return cast(Resources, request.app.state.resources)
