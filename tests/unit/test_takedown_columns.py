"""Every column that can hold text of a prompt or an answer is known to the takedown; a new one must be placed here."""

import pytest
from sqlalchemy import JSON, LargeBinary, String, Text

from app.db import admission_models, export_models, policy_models  # noqa: F401 - their tables belong to the schema
from app.db.models import Base

pytestmark = pytest.mark.smoke

# Emptied by a takedown: app/db/takedowns.py and app/db/stripping.py.
EMPTIED = {
    "prompt": {"body", "custom_id"},
    "prompt_error": {"excerpt"},
    "completion": {"answer", "reasoning", "tool_calls", "sampling", "provider_extra", "error_detail"},
    "part": {"payload"},
}
# Free text or bytes that never hold any of a prompt or an answer.
HARMLESS = {
    "prompt": {"content_hash", "source", "source_key", "license", "teacher"},
    "prompt_error": {"kind", "reason", "append_id"},
    "completion": {
        "content_hash",
        "request_hash",
        "response_hash",
        "status",
        "reasoning_source",
        "finish_reason",
        "engine",
        "prompt_license",
        "teacher_license",
        "error_kind",
        "parent_id",
        "reused_from",
    },
}
# Tables about other things: settings, names, numbers, decisions, the log.
OTHER = {
    "api_key",
    "audit_event",
    "audit_head",
    "budget_use",
    "counter",
    "export",
    "export_file",
    "export_member",
    "export_use",
    "idempotent_request",  # for 24 hours; of prompts only beginnings of rows that did not parse
    "job",
    "lane",
    "leader",
    "pace",
    "policy_decision",
    "policy_override",
    "project",
    "prompt_part",
    "provider_batch",  # its `error` is as a lane's: what a provider says of a whole batch
    "prompt_set",
    "rate_step",
    "replica_state",  # its `reason` is as a lane's: what a server says of itself
    "segment",
    "shard",
    "shard_attempt",
    "slot_grant",
    "stage",
    "takedown",
    "takedown_export",
    "teacher",
    "teacher_pace",
    "worker",
}
KEYS = {"prompt_set_id", "job_id", "removed_by"}


def test_every_column_that_can_hold_text_is_known_to_the_takedown() -> None:
    unplaced = []
    for table in Base.metadata.sorted_tables:
        if table.name in OTHER:
            continue
        for column in table.columns:
            free = isinstance(column.type, String | Text | LargeBinary | JSON) and column.name not in KEYS
            if free and column.name not in EMPTIED.get(table.name, set()) | HARMLESS.get(table.name, set()):
                unplaced.append(f"{table.name}.{column.name}")
    assert unplaced == [], "can a takedown leave text here? Empty it there, or say here why it is harmless"
