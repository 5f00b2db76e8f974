"""What a registered teacher is, apart from how it is talked to."""

from dataclasses import dataclass, field

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """A registered teacher, as a driver needs it. `secret` is resolved at the last moment and never stored."""

    name: str
    driver: str
    model: str
    revision: str | None = None
    base_url: str | None = None
    secret_ref: str | None = None  # "env:NAME" or "file:/path"
    options: dict[str, JsonValue] = field(default_factory=dict)
