"""What is judged: the parts of a dataset, each the rows that share their teachers and their prompt's licence."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field


class TeacherRef(BaseModel):
    """A teacher as the terms see it. `address` is the host name of its URL: it shows a route that was named wrongly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    revision: str | None = None
    access_route: str = Field(description="`weights`, `openai-api`, `together`, …: see routes.toml.")
    address: str | None = None
    past_addresses: tuple[str, ...] = Field(
        (), description="Host names of URLs that it had before: rows may have been made there."
    )
    license: str | None = Field(None, description="SPDX expression that the user gave for the model.")
    terms_id: str | None = Field(
        None,
        description="Terms that were named when it was registered; they count where no row knows the model.",
    )
    trained_on: tuple[str, ...] = Field(
        (), description="Exports that it was trained on: what binds their rows binds its own."
    )


class TrainingData(BaseModel):
    """What an export held, as far as terms go: the teachers and the prompt licences of its rows, each once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    export: str
    teachers: tuple[TeacherRef, ...]
    prompt_licenses: tuple[str, ...]

    @classmethod
    def of(cls, export: str, parts: Iterable["Part"]) -> "TrainingData":
        held = tuple(parts)
        teachers = {teacher for part in held for teacher in part.teachers}
        return cls(
            export=export,
            teachers=tuple(sorted(teachers, key=lambda one: one.model_dump_json())),
            prompt_licenses=tuple(sorted({part.prompt_license for part in held})),
        )


class Part(BaseModel):
    """Rows of one prompt licence and the same teachers (several, where one teacher worked on another's answer).

    `rows` counts them; `examples` names a few, for messages only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    teachers: tuple[TeacherRef, ...] = Field(min_length=1)
    prompt_license: str
    prompt_license_assumed: bool = False
    rows: int = Field(0, ge=0)
    examples: tuple[str, ...] = Field((), max_length=10)
