"""Settings, from the environment (`RETORT_…`, nested with `__`) or a `.env` file. Only the roots read them."""

from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseModel):
    """How a worker generates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_in_flight: int = Field(256, ge=1, description="Calls in flight per worker process.")
    shard_size: int = Field(
        256, ge=1, le=10_000, description="Prompts per shard: the unit of lease and of segment."
    )
    lease_seconds: float = Field(
        60, gt=0, description="A worker that is silent for so long loses its shards."
    )
    flush_seconds: float = Field(
        0.25, gt=0, description="Longest time that a finished sample waits for its checkpoint."
    )
    flush_rows: int = Field(64, ge=1, description="A checkpoint is written at so many finished samples.")
    poll_seconds: float = Field(
        2, gt=0, description="How often an idle worker looks for work without being woken."
    )
    attempts: int = Field(4, ge=1, description="Calls per sample before it becomes a failed row.")
    backoff_seconds: float = Field(
        0.5, ge=0, description="First wait between attempts; doubles, with jitter."
    )
    deadline_seconds: float = Field(
        600, gt=0, description="Total time for one sample, all attempts together."
    )
    park_seconds: float = Field(
        15, gt=0, description="How long a lane waits before a dead teacher is tried again."
    )
    shard_attempts: int = Field(
        20, ge=1, description="Claims of one shard without progress before its rest fails."
    )
    grace_seconds: float = Field(20, ge=0, description="After SIGTERM: time to finish calls in flight.")


class StorageSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        None, description="Where segments and exports lie: a folder or s3://bucket/prefix."
    )
    compression_level: int = Field(9, ge=1, le=19)


class AddressSettings(BaseModel):
    """Which teacher addresses may be called. Link-local addresses never may."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_loopback: bool | None = Field(None, description="Default: yes in the embedded profile, else no.")
    allow_private: tuple[str, ...] = Field(
        (), description="Private networks that teachers may live in (CIDR)."
    )


class RetentionSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    idempotency_hours: float = Field(24, gt=0)
    pace_hours: float = Field(24, gt=0, description="How long throughput samples of a job are kept.")
    attempts_days: float = Field(30, gt=0, description="How long shard histories of ended jobs are kept.")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="RETORT_", env_nested_delimiter="__", env_file=".env", extra="forbid", frozen=True
    )

    profile: Literal["embedded", "scaled"] = "embedded"
    data_dir: Path = Field(
        Path(".retort"), description="Database, segments, exports, sockets and the first key."
    )
    database_url: SecretStr | None = Field(None, description="Default: SQLite in the data folder.")
    broker_url: SecretStr | None = Field(
        None, description="Default in the embedded profile: a private Valkey."
    )
    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65535)
    url: str | None = Field(None, description="Where the command line finds the service.")
    api_key: SecretStr | None = Field(
        None, description="The command line's key; default: the file in the data folder."
    )
    default_license: str | None = Field(None, description="SPDX expression for prompts that name none.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="For JSON bodies; streams of rows have no limit."
    )
    worker_teachers: tuple[str, ...] = Field((), description="This worker serves these teachers only.")
    engine: EngineSettings = EngineSettings()
    storage: StorageSettings = StorageSettings()
    addresses: AddressSettings = AddressSettings()
    retention: RetentionSettings = RetentionSettings()

    @cached_property
    def database(self) -> str:
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'retort.db'}"

    @cached_property
    def storage_url(self) -> str:
        return self.storage.url or str(self.data_dir.absolute() / "storage")

    @property
    def loopback_allowed(self) -> bool:
        allowed = self.addresses.allow_loopback
        return self.profile == "embedded" if allowed is None else allowed

    @property
    def key_file(self) -> Path:
        return self.data_dir / "admin.key"

    @property
    def service_url(self) -> str:
        return self.url or f"http://{self.host}:{self.port}"
