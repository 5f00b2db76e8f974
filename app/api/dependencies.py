"""Who asks, and the session that a request works in."""

import ipaddress
from collections.abc import Callable, Iterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app.api.resources import Resources, resources
from app.db import audit
from app.errors import Forbidden, Unauthenticated
from app.services.projects import Caller, Role, authenticate

ResourcesDep = Annotated[Resources, Depends(resources)]

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of a project (`rtk_…`). The first one is in the data folder, in `admin.key`.",
)


def caller(
    request: Request,
    given: ResourcesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> Caller:
    """The key behind the request. Opens and closes a transaction of its own, so that no connection is held."""
    if credentials is None:
        raise Unauthenticated("send a key: `Authorization: Bearer rtk_…`")
    return authenticate(given.engine, credentials.credentials, from_loopback(request))


def from_loopback(request: Request) -> bool:
    """Whether the request was made on this machine. One that a proxy passed on was not."""
    if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip")):
        return False
    if request.client is None:
        return True  # a unix socket
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _needing(role: Role) -> Callable[[Caller], Caller]:
    def check(who: Annotated[Caller, Depends(caller)]) -> Caller:
        if not who.role.may(role):
            raise Forbidden(f"this needs a key of role {role}; yours is a {who.role}'s")
        return who

    return check


Reader = Annotated[Caller, Depends(_needing(Role.READER))]
Writer = Annotated[Caller, Depends(_needing(Role.WRITER))]
Admin = Annotated[Caller, Depends(_needing(Role.ADMIN))]


def _reading(given: ResourcesDep) -> Iterator[Session]:
    with Session(given.engine) as session:
        yield session


def _writing(given: ResourcesDep) -> Iterator[Session]:
    # No connection is taken before the first statement, in the endpoint's own thread: were it taken here, requests
    # that wait for SQLite's one writer could occupy every thread, and the writer would find none to go on in.
    with Session(given.engine.execution_options(writes=True), expire_on_commit=False) as session:
        yield session
        _write_audit(session)
        session.commit()
    for call in session.info.pop("after_commit", ()):
        call()


def note(session: Session, who: Caller, *events: audit.Event) -> None:
    """Tell the audit log, in this transaction, what the key's owner did."""
    note_of(session, who.project_id, who.key_id, *events)


def note_of(session: Session, project_id: str, actor: str, *events: audit.Event) -> None:
    session.info.setdefault("audit", {}).setdefault((project_id, actor), []).extend(events)


def _write_audit(session: Session) -> None:
    """The last statements of a request: from here to the commit the project's chain is locked."""
    for (project_id, actor), events in sorted(session.info.pop("audit", {}).items()):
        session.flush()
        audit.append(session.connection(), project_id, actor, events)


def after_commit(session: Session, call: Callable[[], None]) -> None:
    """Do this once the request's transaction is committed, before the answer is sent."""
    session.info.setdefault("after_commit", []).append(call)


# scope="function": the commit comes before the answer, so that a commit that fails is never told as a success.
Reading = Annotated[Session, Depends(_reading, scope="function")]
Writing = Annotated[Session, Depends(_writing, scope="function")]
