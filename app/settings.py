"""Settings, from the environment (`RETORT_…`, nested with `__`) or a `.env` file. Only the roots read them.

A misspelt name is an error, in the environment too. `docs/settings.md` lists them all; a test holds it to this file.
"""

import ipaddress
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from app.domain.licences import normalise_license
from app.errors import InvalidLicense
from app.policy.rules import PolicyRules

# Read by others than the service: the model's cache, Compose, the tests.
_NOT_OURS = re.compile(r"retort_(cache_dir|model_dir|version|published_port|(test|fault|bench)\w*)")
_BROKERS = ("redis", "rediss", "redis+socket", "sentinel", "amqp", "amqps", "pyamqp", "filesystem", "memory")


def _database(value: SecretStr) -> SecretStr:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    wanted = "postgresql://user:password@host:5432/name or sqlite:////absolute/path.db"
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError(f"not the URL of a database: write {wanted}") from None
    if url.drivername not in ("sqlite", "postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError(f"{url.drivername} is no database that Retort knows: write {wanted}")
    if not url.database or ":memory:" in url.database:
        raise ValueError(f"it names no database that several processes can share: write {wanted}")
    return value


def _broker(value: SecretStr) -> SecretStr:
    scheme, separator, _ = value.get_secret_value().partition("://")
    if not separator or scheme not in _BROKERS:
        raise ValueError(
            f"write a URL that begins with one of {', '.join(f'{name}://' for name in _BROKERS)}"
        )
    return value


def _http(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
        raise ValueError("write a URL such as http://127.0.0.1:8321")
    return value


def _key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
        raise ValueError("a key is one word of ASCII characters, rtk_…")
    return value


def _license(value: str) -> str:
    try:
        return normalise_license(value)
    except InvalidLicense as error:
        raise ValueError(error.detail) from error


def _words(value: object) -> object:
    """`a, b` as well as `["a", "b"]`."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("this is no list: write names with commas between them") from None
    return [word for word in re.split(r"[,\s]+", value) if word]


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise ValueError(f"{value!r} is no network in CIDR notation, such as 10.0.0.0/8") from error
    return value


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
    flush_rows: int = Field(256, ge=1, description="A checkpoint is written at so many finished samples.")
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
    batch_look_seconds: float = Field(
        60, gt=0, description="How often a provider is asked how far a batch is."
    )


class StorageSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        None, description="Where segments and exports lie: a folder or s3://bucket/prefix."
    )
    compression_level: int = Field(9, ge=1, le=19, description="Of segments: Zstandard's level.")
    profile: Literal["fp16", "compact"] = Field(
        "fp16", description="How logprobs are kept where the project does not say: see storage.md."
    )
    compact_error: float = Field(
        0.0078125, gt=0, le=1, description="Bound of a stored logprob's error in `compact`, in nats."
    )


class AddressSettings(BaseModel):
    """Which teacher addresses may be called. Link-local addresses never may."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_loopback: bool | None = Field(None, description="Default: yes in the embedded profile, else no.")
    allow_private: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_words)
    ] = Field((), description="Private networks that teachers may live in (CIDR), with commas between them.")


class RetentionSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    idempotency_hours: float = Field(24, gt=0, description="How long an Idempotency-Key is remembered.")
    pace_hours: float = Field(24, gt=0, description="How long throughput samples of a job are kept.")
    attempts_days: float = Field(30, gt=0, description="How long shard histories of ended jobs are kept.")


class _Strict(EnvSettingsSource):
    """Variables that begin with `RETORT_` and are no setting are handed on, so that the model forbids them."""

    def __call__(self) -> dict[str, Any]:
        found = EnvSettingsSource.__call__(
            self
        )  # not the parents': of a file, they hand on other programs' too
        prefix = self.env_prefix.lower()
        for name, value in self.env_vars.items():
            if name.startswith(prefix) and not _NOT_OURS.fullmatch(name):
                setting = name.removeprefix(prefix)
                if setting.partition("__")[0] not in self.settings_cls.model_fields:
                    found[setting] = value
        return found


class _StrictFile(_Strict, DotEnvSettingsSource):
    """The same for `.env`, which other programs may share."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="RETORT_",
        env_nested_delimiter="__",
        env_file=".env",
        enable_decoding=False,
        extra="forbid",
        frozen=True,
    )

    profile: Literal["embedded", "scaled"] = Field(
        "embedded", description="Embedded: everything on this machine, which teachers may then live on too."
    )
    data_dir: Path = Field(
        Path(".retort"), description="Database, segments, exports, sockets and the first key."
    )
    database_url: Annotated[SecretStr, AfterValidator(_database)] | None = Field(
        None, description="Default: SQLite in the data folder."
    )
    broker_url: Annotated[SecretStr, AfterValidator(_broker)] | None = Field(
        None, description="Default in the embedded profile: a private Valkey."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address that the API listens on.")
    port: int = Field(8321, ge=0, le=65535, description="0: any that is free.")
    url: Annotated[str, AfterValidator(_http)] | None = Field(
        None,
        description="Where the command line finds the service. Default: where one runs on the data folder.",
    )
    api_key: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        None, description="The command line's key; default: the file in the data folder."
    )
    default_license: Annotated[str, AfterValidator(_license)] | None = Field(
        None, description="Of the first project: SPDX expression for prompts that name none."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="At `debug` every request is logged."
    )
    max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="For JSON bodies; streams of rows have no limit."
    )
    worker_teachers: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="This worker serves these teachers only: names with commas between them."
    )
    engine: EngineSettings = EngineSettings()
    storage: StorageSettings = StorageSettings()
    addresses: AddressSettings = AddressSettings()
    retention: RetentionSettings = RetentionSettings()
    policy: PolicyRules = PolicyRules()
    signing_key_file: Path | None = Field(
        None,
        description="Signs manifests of exports; default: `signing.key` in the data folder, where it is.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Strict(settings_cls), _StrictFile(settings_cls)

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
    def signing_key_path(self) -> Path:
        return self.signing_key_file or self.data_dir / "signing.key"

    def signing_key(self) -> bytes | None:
        """The key that signs manifests, PEM. None where no file was named and none is in the data folder."""
        try:
            return self.signing_key_path.read_bytes()
        except FileNotFoundError:
            if self.signing_key_file is not None:
                raise
            return None

    @property
    def key_file(self) -> Path:
        return self.data_dir / "admin.key"

    @property
    def service_url(self) -> str:
        return self.url or f"http://{self.host}:{self.port}"


def setting_names(model: type[BaseModel] = Settings, prefix: str = "RETORT_") -> list[str]:
    """The environment variable of every setting."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        variable, kind = f"{prefix}{name}".upper(), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{variable}__")
        else:
            names.append(variable)
    return names
