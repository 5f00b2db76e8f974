"""`Idempotency-Key` on routes that create: the answer is stored in the transaction that creates."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.api.dependencies import Admin, ResourcesDep, Writer, Writing, note
from app.db.audit import Event
from app.db.session import reading
from app.errors import PolicyRefusal
from app.services import idempotency
from app.services.idempotency import Answer
from app.services.policy import keep_refusal
from app.services.projects import Caller

REPLAYED = "Idempotency-Replayed"

M = TypeVar("M", bound=BaseModel)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A name of your own for this request. Sent again with it, the request is answered from memory, "
        "with the header `Idempotency-Replayed: true`, and nothing is made twice. Kept for 24 hours by default.",
    ),
]


async def _body(request: Request) -> bytes:
    return await request.body()


def request_hash(request: Request, body: bytes) -> bytes:
    """What must be equal for two requests to be the same one."""
    digest = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    digest.update(body)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Once:
    """Answers a creating request, from memory where it was answered before."""

    engine: Engine
    session: Session
    caller: Caller
    key: str | None
    request_sha256: bytes

    def answer(
        self,
        status: int,
        make: Callable[[], M],
        memory: Callable[[M], BaseModel] | None = None,
        check: Callable[[], None] | None = None,
        audit: Callable[[M], Event] | None = None,
    ) -> Response:
        """The answer of `make`. `memory` is what is kept of it, where that is not all (a secret is not).

        `audit` tells what was done, for the log; a request that is answered from memory did nothing.
        `check` is done before the transaction begins: for what takes its time, and may raise.
        """
        project_id = self.caller.project_id
        if check is not None and not self._known():
            check()
        if self.key is not None:
            earlier = idempotency.recall(self.session, project_id, self.key, self.request_sha256)
            if earlier is not None:
                return json_answer(earlier.status, earlier.body, {REPLAYED: "true"})
        try:
            made = make()
        except PolicyRefusal as error:
            self.session.rollback()
            keep_refusal(self.engine, project_id, self.caller.key_id, error)
            raise
        if audit is not None:
            note(self.session, self.caller, audit(made))
        body = made.model_dump_json().encode()
        if self.key is not None:
            kept = body if memory is None else memory(made).model_dump_json().encode()
            idempotency.remember(
                self.session, project_id, self.key, self.request_sha256, Answer(status, kept)
            )
        return json_answer(status, body)

    def _known(self) -> bool:
        if self.key is None:
            return False
        with reading(self.engine) as connection:
            return idempotency.is_known(connection, self.caller.project_id, self.key)


def json_answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers=headers, media_type="application/json")


Body = Annotated[bytes, Depends(_body)]


def _by_writer(
    request: Request,
    given: ResourcesDep,
    session: Writing,
    caller: Writer,
    body: Body,
    key: IdempotencyKey = None,
) -> Once:
    return Once(given.engine, session, caller, key, request_hash(request, body))


def _by_admin(
    request: Request,
    given: ResourcesDep,
    session: Writing,
    caller: Admin,
    body: Body,
    key: IdempotencyKey = None,
) -> Once:
    return Once(given.engine, session, caller, key, request_hash(request, body))


WriterOnce = Annotated[Once, Depends(_by_writer)]
AdminOnce = Annotated[Once, Depends(_by_admin)]
