"""Routes of the audit log."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.dependencies import Admin, Reading
from app.api.paging import Cursor, Limit, Page, int_places, page_of
from app.services import audit
from app.services.audit import Anchor, AuditEventView, AuditHeadView, AuditVerification

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", response_model=Page[AuditEventView], summary="Read the audit log")
def list_audit_events(
    session: Reading,
    who: Admin,
    subject: Annotated[str | None, Query(max_length=64, description="Only events about this id.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditEventView]:
    """Who did what, newest first. It is only ever appended to, and holds no secret, no prompt and no answer."""
    place = int_places("audit", cursor, 1)
    found = audit.page(session, who.project_id, subject, place[0] if place else None, limit + 1)
    return page_of("audit", found, limit, lambda event: [event.sequence])


@router.get("/head", response_model=AuditHeadView, summary="Read the head of the audit log")
def read_audit_head(session: Reading, who: Admin) -> AuditHeadView:
    """Keep it elsewhere: given to `/v1/audit/verify` later, it proves that nothing up to here was changed or removed.

    Every export's manifest carries the head of its day.
    """
    return audit.head(session, who.project_id)


@router.get("/verify", response_model=AuditVerification, summary="Verify the audit log")
def verify_audit_log(
    session: Reading,
    who: Admin,
    anchor: Annotated[
        list[str] | None,
        Query(
            max_length=100,
            description="A head that was kept, as `sequence:hash`; may be given several times.",
        ),
    ] = None,
) -> AuditVerification:
    """Walk the whole chain: a changed, added or removed event is found, at the end only by the head or an anchor.

    ```sh
    curl -s "http://127.0.0.1:8321/v1/audit/verify?anchor=$SEQUENCE:$HASH" -H "Authorization: Bearer $RETORT_API_KEY"
    ```
    """
    anchors = tuple(Anchor.parsed(one) for one in anchor or ())
    return audit.verify(session.connection(), who.project_id, anchors)
