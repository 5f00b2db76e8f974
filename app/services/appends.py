"""Appending rows to a prompt set: short transactions, each row judged alone, resumable after any death.

An append with an `Idempotency-Key` writes in each of its transactions how far it has come. Sent again after a cut
connection or a killed server, it goes on behind its last committed line; sent again after its end, it is answered from
memory. The compare-and-set on that note is also its fence: of two requests with one key, one gets no further.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import Engine, select

from app.db import audit, cutting, idempotency, prompt_sets, shards
from app.db.models import Project, PromptSet
from app.db.prompt_sets import RowError
from app.db.session import session, transaction
from app.domain.fingerprints import new_id
from app.domain.prompts import MAX_ROW_BYTES, StoredPrompt, parse_line, stored
from app.errors import IdempotencyConflict, InvalidInput, InvalidRow, NotFound, Sealed
from app.services.idempotency import Answer, check_same
from app.services.prompt_sets import PromptSetView, view

CHUNK_ROWS = 2000
CHUNK_BYTES = 4 * 1024 * 1024
SILENT_SECONDS = 60  # an unfinished append without a sign of life for so long may be taken over
_SHOWN_ERRORS = 20
_EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it came. `content` is cut off where the row is too long to be taken."""

    line: int  # from 1
    content: bytes
    too_long: bool = False


class RowErrorView(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)

    line: int = Field(description="From 1.")
    kind: str
    reason: str
    excerpt: str


class AppendView(BaseModel):
    """What an append did."""

    model_config = ConfigDict(frozen=True)

    append_id: str
    n_added: int
    n_rejected: int
    n_license_assumed: int = Field(description="Added rows without a licence of their own: a warning.")
    through_line: int = Field(
        description="Last line that was dealt with; an append can be resumed behind it."
    )
    errors: list[RowErrorView] = Field(
        description="The first rows that did not parse; all are under `/errors`."
    )
    prompt_set: PromptSetView


class Progress(BaseModel):
    """The note that an unfinished append leaves beside its rows."""

    model_config = ConfigDict(frozen=True)

    append_id: str
    holder: str  # the request that works on it; empty: nobody
    through_line: int = 0
    n_added: int = 0
    n_rejected: int = 0
    n_license_assumed: int = 0

    def note(self) -> bytes:
        return self.model_dump_json().encode()


def judge(row: RawRow, default_license: str | None) -> StoredPrompt | RowError:
    """The row as a prompt, or why it is none."""
    try:
        if row.too_long:
            raise InvalidRow(f"the row is longer than {MAX_ROW_BYTES:,} bytes")
        prompt = stored(parse_line(row.content), default_license)
        if any("\x00" in (text or "") for text in (prompt.source, prompt.custom_id, prompt.teacher)):
            raise InvalidRow("`source`, `custom_id` and `teacher` may not contain the character U+0000")
    except InvalidInput as error:
        return RowError(row.line, error.kind, error.detail, _excerpt(row.content))
    except (TypeError, RecursionError):
        return RowError(row.line, InvalidRow.kind, "nested too deeply", _excerpt(row.content))
    return prompt


def _excerpt(content: bytes) -> str:
    return content[: _EXCERPT_CHARS * 4].decode("utf-8", "replace").replace("\x00", "\ufffd")[:_EXCERPT_CHARS]


@dataclass(frozen=True, slots=True)
class Ticket:
    """An `Idempotency-Key` and the hash of the request that it stands for."""

    key: str
    request_sha256: bytes


class Append:
    """One append under way. Not for several threads at once."""

    def __init__(
        self,
        engine: Engine,
        project_id: str,
        key_id: str,
        set_id: str,
        default_license: str | None,
        progress: Progress,
        ticket: Ticket | None,
    ) -> None:
        self.default_license = default_license
        self.progress = progress
        self._engine = engine
        self._project_id = project_id
        self._key_id = key_id
        self._set_id = set_id
        self._ticket = ticket
        self._errors: list[RowError] = []

    def add(self, rows: Iterable[RawRow]) -> None:
        """Judge and store rows, in one transaction. Rows up to `progress.through_line` were dealt with before.

        Raises `Sealed`, and `IdempotencyConflict` where another request has taken this append over.
        """
        fresh = [row for row in rows if row.line > self.progress.through_line]
        if not fresh:
            return
        judged = [judge(row, self.default_license) for row in fresh]
        prompts = [one for one in judged if isinstance(one, StoredPrompt)]
        errors = [one for one in judged if isinstance(one, RowError)]
        moved = self.progress.model_copy(
            update={
                "through_line": fresh[-1].line,
                "n_added": self.progress.n_added + len(prompts),
                "n_rejected": self.progress.n_rejected + len(errors),
                "n_license_assumed": self.progress.n_license_assumed
                + sum(p.license_assumed for p in prompts),
            }
        )
        with transaction(self._engine) as connection:
            head = prompt_sets.locked_head(connection, self._set_id)
            if head.sealed:
                raise _sealed(self._set_id)
            prompt_sets.extend(connection, self._set_id, head, prompts, errors, moved.append_id)
            if self._ticket is not None and not idempotency.advance(
                connection, self._project_id, self._ticket.key, self.progress.note(), moved.note(), None
            ):
                raise _taken_over(self._ticket.key)
        self.progress = moved
        self._errors.extend(errors[: _SHOWN_ERRORS - len(self._errors)])

    def finish(self, seal: bool) -> AppendView:
        """Nothing more comes. Seals the set where asked, and hands new prompts to the jobs that follow it."""
        with session(self._engine, writes=True) as work:
            connection = work.connection()
            head = prompt_sets.locked_head(connection, self._set_id)
            if seal:
                prompt_sets.seal(connection, self._set_id)
            row = work.execute(select(PromptSet).where(PromptSet.id == self._set_id)).scalar_one()
            made = AppendView(
                append_id=self.progress.append_id,
                n_added=self.progress.n_added,
                n_rejected=self.progress.n_rejected,
                n_license_assumed=self.progress.n_license_assumed,
                through_line=self.progress.through_line,
                errors=[RowErrorView.model_validate(error) for error in self._errors],
                prompt_set=view(row),
            )
            if self._ticket is not None and not idempotency.advance(
                connection,
                self._project_id,
                self._ticket.key,
                self.progress.note(),
                made.model_dump_json().encode(),
                200,
            ):
                raise _taken_over(self._ticket.key)
            told: dict[str, JsonValue] = {
                "append": made.append_id,
                "n_added": made.n_added,
                "n_rejected": made.n_rejected,
                "n_license_assumed": made.n_license_assumed,
                "sealed": seal,
            }
            event = audit.Event("prompt_set.appended", self._set_id, told)
            audit.append(connection, self._project_id, self._key_id, [event])
        if self.progress.n_added or (seal and not head.sealed):
            hand_to_followers(self._engine, self._set_id)
        return made

    def suspend(self) -> None:
        """The client is gone, or its rows were refused: let the same key go on at once, or start anew."""
        if self._ticket is None:
            return
        left = self.progress.model_copy(update={"holder": ""})
        with transaction(self._engine) as connection:
            if self.progress.through_line == 0:
                idempotency.forget(connection, self._project_id, self._ticket.key, self.progress.note())
            else:
                idempotency.advance(
                    connection, self._project_id, self._ticket.key, self.progress.note(), left.note(), None
                )


def begin(
    engine: Engine, project_id: str, key_id: str, set_id: str, ticket: Ticket | None, from_line: int = 1
) -> Append | Answer:
    """Start an append, or go on with it; an `Answer` where it has ended before.

    Raises `NotFound`, `Sealed`, and `IdempotencyConflict` while another request works on it.
    """
    holder = secrets.token_hex(8)
    with transaction(engine) as connection:
        found = connection.execute(
            select(PromptSet.sealed, Project.default_license)
            .join(Project, Project.id == PromptSet.project_id)
            .where(PromptSet.id == set_id, PromptSet.project_id == project_id)
        ).one_or_none()
        if found is None:
            raise NotFound(f"there is no prompt set {set_id!r} in this project")
        progress = Progress(append_id=new_id("app"), holder=holder, through_line=from_line - 1)
        if ticket is not None:
            earlier = idempotency.find(connection, project_id, ticket.key)
            if earlier is not None and earlier.status is not None:
                check_same(ticket.key, earlier.request_sha256, ticket.request_sha256)
                return Answer(earlier.status, earlier.body)
            if earlier is not None:
                progress = _resumed(ticket, earlier, holder)
                taken = idempotency.advance(
                    connection, project_id, ticket.key, earlier.body, progress.note(), None
                )
            else:
                taken = idempotency.add(
                    connection, project_id, ticket.key, ticket.request_sha256, None, progress.note()
                )
            if not taken:
                raise _under_way(ticket.key)
        if found.sealed:
            raise _sealed(set_id)
        event = audit.Event("prompt_set.append", set_id, {"append": progress.append_id})
        audit.append(connection, project_id, key_id, [event])
    return Append(engine, project_id, key_id, set_id, found.default_license, progress, ticket)


def _resumed(ticket: Ticket, earlier: idempotency.Remembered, holder: str) -> Progress:
    check_same(ticket.key, earlier.request_sha256, ticket.request_sha256)
    progress = Progress.model_validate_json(earlier.body)
    if progress.holder and earlier.age < SILENT_SECONDS:
        raise _under_way(ticket.key)
    return progress.model_copy(update={"holder": holder})


def hand_to_followers(engine: Engine, set_id: str) -> None:
    """Cut what is new for the jobs that follow the set, and end those that only waited for its seal.

    The engine does the same when it sweeps: this only makes it sooner.
    """
    with transaction(engine) as connection:
        jobs = prompt_sets.followers(connection, set_id)
    for job_id in jobs:
        with transaction(engine) as connection:
            cutting.cut(connection, job_id)
            shards.end_job_if_done(connection, job_id)


def chunks(values: Sequence[object]) -> Iterable[list[RawRow]]:
    """Decoded JSON values as rows, in portions of one transaction each; line 1 is the first value."""
    portion: list[RawRow] = []
    size = 0
    for line, value in enumerate(values, 1):
        content = orjson.dumps(value)
        portion.append(RawRow(line, content))
        size += len(content)
        if len(portion) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _sealed(set_id: str) -> Sealed:
    return Sealed(f"prompt set {set_id} is sealed: make a new one for more prompts")


def _under_way(key: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"the append with Idempotency-Key {key!r} is still under way: ask again in a while"
    )


def _taken_over(key: str) -> IdempotencyConflict:
    return IdempotencyConflict(f"another request has taken over the append with Idempotency-Key {key!r}")
