"""How strict the policy is. The defaults are those of the design; a change is part of every decision's inputs."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Moment(StrEnum):
    """When a decision is made: before anything is generated, or before anything leaves the service."""

    CREATION = "creation"
    EXPORT = "export"


class PolicyRules(BaseModel):
    """What is not certain: permitted with a warning, or blocked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    permit_second_hand: bool = Field(
        True, description="Terms known from an excerpt (evidence M) warn; else they block."
    )
    permit_not_read: bool = Field(
        False, description="Terms that nobody read (evidence L) warn; else they block."
    )
    permit_unknown: bool = Field(False, description="No terms, or unknown ones, warn; else they block.")
    stale_after_days: int = Field(180, ge=1, description="Terms that were read longer ago warn.")
