"""What an export is asked to be: which rows, how they are split and cut into files, in which format, for what."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.domain.metadata_filter import MetadataFilter
from app.domain.sampling import IntendedUse
from app.domain.splits import Split

_FEW = 100


class Selection(BaseModel):
    """Which completions: the completed ones of these jobs that pass every filter that is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: tuple[str, ...] = Field(min_length=1, max_length=_FEW, description="Ids of jobs.")
    teachers: tuple[str, ...] = Field((), max_length=_FEW, description="Names of teachers; none: all.")
    stages: tuple[str, ...] = Field((), max_length=_FEW, description="Names of stages; none: all.")
    prompt_licenses: tuple[str, ...] = Field(
        (), max_length=_FEW, description="SPDX expressions, as the prompts carry them; none: any."
    )
    teacher_licenses: tuple[str, ...] = Field((), max_length=_FEW, description="The same of the teachers.")
    finish_reasons: tuple[str, ...] = Field(
        (), max_length=_FEW, description="As the teacher says them: `stop`, `length`, …; none: any."
    )
    reasoning: bool | None = Field(None, description="Only rows with a trace (true) or without (false).")
    reasoning_truncated: bool | None = Field(
        None, description="Only rows whose trace was cut off (true), or was not (false)."
    )
    metadata: tuple[MetadataFilter, ...] = Field(
        (), max_length=20, description="Conditions on the prompts' metadata; all must hold."
    )


class FileSize(BaseModel):
    """When a data file is full: at so many rows, or with the row group or block that reaches so many bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(100_000, ge=1, le=10_000_000)
    bytes: int = Field(512 * 1024 * 1024, ge=64 * 1024, le=16 * 1024**3)


class Layout(BaseModel):
    """How rows are distributed over files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split = Field(Split(), description="By a hash of the prompt. Default: all is `train`.")
    file_size: FileSize = FileSize()


class ExportSpec(BaseModel):
    """What to write, how, and for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(
        None, min_length=1, max_length=200, description="For people. Default: the first job's name."
    )
    format: str = Field("jsonl", max_length=50, description="How rows are written.")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="The format's own options: see `GET /v1/export-formats`."
    )
    selection: Selection
    split: Split = Field(Split(), description="By a hash of the prompt. Default: all is `train`.")
    file_size: FileSize = FileSize()
    intended_use: IntendedUse = Field(
        IntendedUse(), description="What the data is for; judged by the terms of its teachers and prompts."
    )
    on_refusal: Literal["refuse", "drop"] = Field(
        "refuse",
        description="`drop`: where terms or licences forbid the use, leave out the rows at fault, as the refusal "
        "offers. The manifest names and counts them.",
    )


def wanted(spec: Selection) -> Selection:
    """The same selection whatever order its lists were given in."""
    ordered = {
        name: tuple(sorted(set(getattr(spec, name))))
        for name in ("jobs", "teachers", "stages", "prompt_licenses", "teacher_licenses", "finish_reasons")
    }
    return spec.model_copy(update=ordered)
