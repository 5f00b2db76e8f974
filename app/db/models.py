"""The one schema, for SQLite and PostgreSQL. All times are seconds since 1970 by the *database's* clock."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite makes an INTEGER PRIMARY KEY its rowid; BIGINT would not count up by itself.
Serial = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it so
        str: String,
        int: BigInteger,
        float: Double,
        bool: Boolean,
        bytes: LargeBinary,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        list[str]: JSON,
    }


class Project(Base):
    __tablename__ = "project"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    default_license: Mapped[str | None]
    storage_profile: Mapped[str | None]  # fp16 | compact; None: the settings decide
    created_at: Mapped[float]


class ApiKey(Base):
    """A key is shown once; its SHA-256 is kept (256 random bits need no slow hash)."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), index=True)
    name: Mapped[str]
    role: Mapped[str]  # admin | writer | reader
    secret_sha256: Mapped[bytes] = mapped_column(unique=True)
    loopback_only: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class IdempotentRequest(Base):
    __tablename__ = "idempotent_request"

    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[bytes]
    status: Mapped[int | None] = mapped_column(SmallInteger)  # None: still under way
    body: Mapped[bytes | None]
    created_at: Mapped[float] = mapped_column(index=True)


class Teacher(Base):
    __tablename__ = "teacher"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    driver: Mapped[str]
    model: Mapped[str]
    revision: Mapped[str | None]
    access_route: Mapped[str]  # weights | openai-api | together | …: with the model it selects the terms
    base_url: Mapped[str | None]
    past_hosts: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # names, of earlier URLs
    secret_ref: Mapped[str | None]  # env:NAME or file:/path, never the secret
    license: Mapped[str | None]  # SPDX expression of the model
    terms_id: Mapped[str | None]
    options: Mapped[dict[str, Any]]
    max_in_flight: Mapped[int | None] = mapped_column(Integer)
    max_requests_per_minute: Mapped[int | None]
    max_input_tokens_per_minute: Mapped[int | None]
    max_output_tokens_per_minute: Mapped[int | None]
    replicas: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # further base URLs
    price: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # rates told by its owner
    trained_on: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # ids of exports
    capabilities: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    identity_sha256: Mapped[bytes | None]
    probed_at: Mapped[float | None]
    created_at: Mapped[float]


class PromptSet(Base):
    __tablename__ = "prompt_set"
    __table_args__ = (Index("ix_prompt_set_project_id_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    sealed: Mapped[bool] = mapped_column(default=False)
    content_hash: Mapped[bytes]  # chained over the prompts' hashes, in order
    n_prompts: Mapped[int] = mapped_column(default=0)
    n_errors: Mapped[int] = mapped_column(default=0)
    n_license_assumed: Mapped[int] = mapped_column(default=0)
    n_removed: Mapped[int] = mapped_column(default=0, server_default="0")  # by takedowns
    names_teachers: Mapped[bool] = mapped_column(default=False)  # some prompt asks for a teacher by name
    created_by: Mapped[str]
    created_at: Mapped[float]
    sealed_at: Mapped[float | None]


class PromptRow(Base):
    __tablename__ = "prompt"
    __table_args__ = (
        Index(
            "ix_prompt_source_key",
            "source_key",
            postgresql_where=text("source_key IS NOT NULL"),
            sqlite_where=text("source_key IS NOT NULL"),
        ),
        Index(
            "ix_prompt_removed_by",
            "removed_by",
            "prompt_set_id",
            "number",
            postgresql_where=text("removed_by IS NOT NULL"),
            sqlite_where=text("removed_by IS NOT NULL"),
        ),
    )

    prompt_set_id: Mapped[str] = mapped_column(ForeignKey("prompt_set.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 0, in order of arrival
    body: Mapped[bytes]  # JSON: messages, tools, response_schema, parameters, reference, metadata
    content_hash: Mapped[bytes]
    license: Mapped[str]
    license_assumed: Mapped[bool]
    source: Mapped[str | None]
    source_key: Mapped[bytes | None]  # the first 16 bytes of its SHA-256, for the index
    removed_by: Mapped[str | None]  # the takedown that took the text away
    custom_id: Mapped[str | None]
    teacher: Mapped[str | None]


class PromptError(Base):
    """A row that did not parse: nothing of it is in the set, and the sender can see why."""

    __tablename__ = "prompt_error"

    prompt_set_id: Mapped[str] = mapped_column(ForeignKey("prompt_set.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # from 0
    append_id: Mapped[str]  # the append that brought it
    line: Mapped[int]  # from 1, in that append
    kind: Mapped[str]
    reason: Mapped[str] = mapped_column(Text)
    excerpt: Mapped[str] = mapped_column(Text)


class Job(Base):
    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_project_id_id", "project_id", "id"),
        Index("ix_job_tidied_ended_at", "tidied", "ended_at"),
        Index(
            "ix_job_active",
            "status",
            postgresql_where=text("status NOT IN ('completed', 'failed', 'cancelled')"),
            sqlite_where=text("status NOT IN ('completed', 'failed', 'cancelled')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    prompt_set_id: Mapped[str] = mapped_column(ForeignKey("prompt_set.id"), index=True)
    name: Mapped[str]
    status: Mapped[str]
    status_reason: Mapped[str | None] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(Integer, default=0)  # higher goes first
    max_in_flight: Mapped[int | None] = mapped_column(Integer)
    follow: Mapped[bool] = mapped_column(default=False)
    reuse: Mapped[bool] = mapped_column(default=False)
    intended_use: Mapped[dict[str, Any]]
    budget: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    shard_size: Mapped[int] = mapped_column(Integer)
    cut_through: Mapped[int] = mapped_column(default=0)  # prompts before this number are in shards
    n_expected: Mapped[int] = mapped_column(
        default=0
    )  # completions, over all teachers and stages, cut so far
    n_shards: Mapped[int] = mapped_column(default=0)
    n_shards_finished: Mapped[int] = mapped_column(default=0)
    code_version: Mapped[str]
    policy_decision_id: Mapped[str | None]  # made at creation
    created_by: Mapped[str]  # the key's id
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    # What housekeeping has taken away since the end: 0 nothing, 1 pace and orphan files, 2 shards' histories too.
    tidied: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")


class Stage(Base):
    """A step of the job's recipe; a completion belongs to one."""

    __tablename__ = "stage"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    name: Mapped[str]
    kind: Mapped[str]  # generate
    sampling: Mapped[dict[str, Any]]
    n: Mapped[int] = mapped_column(SmallInteger)
    top_logprobs: Mapped[int] = mapped_column(SmallInteger)
    elicit: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Lane(Base):
    """One teacher of one job, with what it was when the job began. Lanes park alone."""

    __tablename__ = "lane"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    teacher: Mapped[int] = mapped_column(
        SmallInteger, primary_key=True, autoincrement=False
    )  # position in the job
    teacher_id: Mapped[str] = mapped_column(ForeignKey("teacher.id"), index=True)
    teacher_name: Mapped[str]
    driver: Mapped[str]
    model: Mapped[str]
    revision: Mapped[str | None]
    access_route: Mapped[str]
    license: Mapped[str | None]
    terms_id: Mapped[str | None]
    identity_sha256: Mapped[bytes | None]
    capabilities: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    price: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # as known at submission
    execution: Mapped[str] = mapped_column(default="calls", server_default="calls")  # calls | batch
    removed_by: Mapped[str | None]  # the takedown of its teacher: nothing more is made here
    generation_depth: Mapped[int] = mapped_column(SmallInteger, default=0, server_default="0")
    trained_on: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # ids of exports
    parked_reason: Mapped[str | None] = mapped_column(Text)
    parked_kind: Mapped[str | None]
    parked_until: Mapped[float | None]  # tried again then; None with a reason: waits for a person


class Shard(Base):
    """Consecutive prompts of one job, stage and teacher: the unit of lease and of segment."""

    __tablename__ = "shard"
    __table_args__ = (
        UniqueConstraint("job_id", "stage", "teacher", "first_prompt"),
        Index(
            "ix_shard_ready",
            "job_id",
            "teacher",
            "id",
            postgresql_where=text("status = 'ready'"),
            sqlite_where=text("status = 'ready'"),
        ),
        Index(
            "ix_shard_leased",
            "job_id",
            "teacher",
            "lease_until",
            postgresql_where=text("status = 'leased'"),
            sqlite_where=text("status = 'leased'"),
        ),
        Index(
            "ix_shard_provider_batch_id",
            "provider_batch_id",
            postgresql_where=text("provider_batch_id IS NOT NULL"),
            sqlite_where=text("provider_batch_id IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    stage: Mapped[int] = mapped_column(SmallInteger)
    teacher: Mapped[int] = mapped_column(SmallInteger)
    first_prompt: Mapped[int]
    end_prompt: Mapped[int]  # exclusive
    n_expected: Mapped[int] = mapped_column(Integer)
    n_completed: Mapped[int] = mapped_column(Integer, default=0)
    n_failed: Mapped[int] = mapped_column(Integer, default=0)
    status: Mapped[str]
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(
        default=0
    )  # the fencing token: every later write of the shard checks it
    lease_until: Mapped[float | None]
    claims_without_progress: Mapped[int] = mapped_column(Integer, default=0)
    suspect: Mapped[int | None]  # the prompt that is asked alone, because workers died over this shard
    segment_id: Mapped[int | None]  # no foreign key: the two tables would point at each other
    provider_batch_id: Mapped[str | None]  # the open batch that its missing samples are in
    batch_rounds: Mapped[int] = mapped_column(
        SmallInteger, default=0, server_default="0"
    )  # since it was finished


class ShardAttempt(Base):
    """Who held a shard, from when to when, and how it ended: for a person who asks why."""

    __tablename__ = "shard_attempt"

    shard_id: Mapped[int] = mapped_column(ForeignKey("shard.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str]
    claimed_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]  # finished | released | lost | parked
    detail: Mapped[str | None] = mapped_column(Text)


class Segment(Base):
    """An immutable Parquet file with the token columns of a shard. A pointer is committed after its file is synced."""

    __tablename__ = "segment"

    id: Mapped[int] = mapped_column(Serial, primary_key=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shard.id"), index=True)
    generation: Mapped[int] = mapped_column(Integer)
    path: Mapped[str] = mapped_column(unique=True)  # relative to the storage URL
    sha256: Mapped[bytes]
    n_bytes: Mapped[int]
    n_rows: Mapped[int]
    k: Mapped[int] = mapped_column(SmallInteger)
    created_at: Mapped[float]


class Part(Base):
    """Token columns of one checkpoint, Arrow IPC, in the same transaction as its rows; gone with compaction."""

    __tablename__ = "part"

    shard_id: Mapped[int] = mapped_column(ForeignKey("shard.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    payload: Mapped[bytes]


class Completion(Base):
    __tablename__ = "completion"
    __table_args__ = (
        Index(
            "ix_completion_content_hash",
            "content_hash",
            postgresql_where=text("status = 'completed'"),
            sqlite_where=text("status = 'completed'"),
        ),
        Index(
            "ix_completion_failed",
            "job_id",
            "prompt_number",
            postgresql_where=text("status = 'failed'"),
            sqlite_where=text("status = 'failed'"),
        ),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    stage: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    prompt_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    teacher: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sample_index: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    shard_id: Mapped[int]
    parent_id: Mapped[str | None]  # the previous turn of a dialogue
    status: Mapped[str]
    answer: Mapped[str | None] = mapped_column(Text)
    reasoning: Mapped[str | None] = mapped_column(Text)
    reasoning_source: Mapped[str | None]
    reasoning_truncated: Mapped[bool] = mapped_column(default=False)
    tool_calls: Mapped[str | None] = mapped_column(Text)  # JSON
    finish_reason: Mapped[str | None]
    prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    completion_tokens: Mapped[int | None] = mapped_column(Integer)
    reasoning_tokens: Mapped[int | None] = mapped_column(Integer)
    cached_tokens: Mapped[int | None] = mapped_column(Integer)
    cost_nanousd: Mapped[int | None]  # 10⁻⁹ USD; None: not known
    n_tokens: Mapped[int | None] = mapped_column(
        Integer
    )  # tokens in the segment; None: the teacher gave no ids
    attempts: Mapped[int] = mapped_column(SmallInteger)
    calls: Mapped[int] = mapped_column(SmallInteger)
    latency_ms: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int]
    content_hash: Mapped[bytes]  # teacher identity, prompt, sampling parameters, index
    request_hash: Mapped[bytes | None]
    response_hash: Mapped[bytes | None]
    sampling: Mapped[str | None] = mapped_column(Text)  # JSON, where it differs from the stage's
    engine: Mapped[str | None]
    provider_extra: Mapped[str | None] = mapped_column(Text)  # JSON
    prompt_license: Mapped[str]
    teacher_license: Mapped[str | None]
    reused_from: Mapped[str | None]
    removed_by: Mapped[str | None]  # the takedown that took text and tokens away
    error_kind: Mapped[str | None]
    error_detail: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float]


class Counter(Base):
    """A job's counts, striped so that no row is hot: read by summing a handful of rows, at any size."""

    __tablename__ = "counter"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    teacher: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    stripe: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    reused: Mapped[int] = mapped_column(default=0)
    removed: Mapped[int] = mapped_column(default=0, server_default="0")  # taken down; in no other count
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    calls: Mapped[int] = mapped_column(default=0)
    retries: Mapped[int] = mapped_column(default=0)
    cost_nanousd: Mapped[int] = mapped_column(default=0, server_default="0")
    unpriced: Mapped[int] = mapped_column(default=0, server_default="0")  # completions of unknown cost


class Pace(Base):
    """Completions and tokens per job in steps of some seconds: throughput and time left are read from here."""

    __tablename__ = "pace"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # floor(time / PACE_SECONDS)
    stripe: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    rows: Mapped[int]
    tokens: Mapped[int]


class Worker(Base):
    """A worker process, by its heartbeat."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[str]
    started_at: Mapped[float]
    heartbeat_at: Mapped[float]
    lease_until: Mapped[float]
    in_flight: Mapped[int] = mapped_column(Integer, default=0)
    unflushed: Mapped[int] = mapped_column(Integer, default=0)
    draining: Mapped[bool] = mapped_column(default=False)


class SlotGrant(Base):
    """How many calls in flight a worker may have for a capped teacher or job (`scope` is either's id)."""

    __tablename__ = "slot_grant"

    scope: Mapped[str] = mapped_column(primary_key=True)
    worker_id: Mapped[str] = mapped_column(primary_key=True)
    slots: Mapped[int] = mapped_column(Integer)
    wanted: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    lease_until: Mapped[float]


class Leader(Base):
    """One row per duty that one process at a time does (`housekeeping`)."""

    __tablename__ = "leader"

    duty: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    lease_until: Mapped[float]
