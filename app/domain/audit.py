"""The audit chain: every event's hash covers the event before it, so that none can be changed, added or left out."""

from app.domain.fingerprints import canonical_json, sha256

FORMAT = "retort-audit-1"


def genesis(project_id: str) -> bytes:
    """What the first event of a project is chained to: 32 raw bytes."""
    return sha256(f"{FORMAT}\n{project_id}".encode())


def event_hash(
    previous: bytes,
    project_id: str,
    sequence: int,
    at: float,
    actor: str,
    action: str,
    subject: str,
    detail: str,
) -> bytes:
    """SHA-256 over the previous hash and the event: 32 raw bytes.

    `at` is hashed as its shortest decimal spelling (a double survives both databases); `detail` as the
    text that is stored.
    """
    event = [FORMAT, project_id, sequence, repr(at), actor, action, subject, detail]
    return sha256(previous + canonical_json(event))
