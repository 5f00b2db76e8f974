"""Sampling parameters: what is asked of a teacher for one sample."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Temperature = Annotated[float, Field(ge=0, le=2)]
Probability = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class SamplingOverrides(BaseModel):
    """Parameters that one prompt carries; an absent field takes the job's value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Temperature | None = Field(None, description="0 is greedy.")
    top_p: Probability | None = None
    top_k: int | None = Field(None, ge=1, description="Sample among the k likeliest tokens only.")
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Upper bound of generated tokens.")
    stop: tuple[str, ...] | None = Field(None, max_length=16)
    seed: int | None = Field(None, ge=0, lt=2**63, description="Sample i is asked with seed + i.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    reasoning_effort: str | None = Field(None, max_length=32, description="For teachers that take one.")
    thinking_token_budget: int | None = Field(
        None, ge=0, description="For vLLM with a reasoning parser: the trace is ended after so many tokens."
    )
    chat_template_kwargs: dict[str, JsonValue] | None = None


class SamplingParameters(SamplingOverrides):
    """The whole set for a stage. `None` means: the teacher's own default, and nothing is sent."""

    temperature: Temperature | None = 0.7
    max_tokens: int | None = Field(512, ge=1, le=1_000_000)

    def overridden(self, overrides: SamplingOverrides | None) -> "SamplingParameters":
        """These parameters with a prompt's own laid over them."""
        if overrides is None:
            return self
        return self.model_copy(update=overrides.model_dump(exclude_none=True))

    def for_sample(self, index: int) -> "SamplingParameters":
        """The parameters of sample `index`: the same, with seed + index."""
        if self.seed is None or index == 0:
            return self
        return self.model_copy(update={"seed": (self.seed + index) % 2**63})

    def asked(self) -> dict[str, Any]:
        """The fields that are set, JSON-ready."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self
            if value is not None
        }


class Elicitation(BaseModel):
    """How to draw a reasoning trace from a teacher that does not reason by itself.

    The instruction becomes (or is put before) the system message and the turn is begun with `<think>`. A trace
    that has not ended after `max_reasoning_tokens` is closed for the teacher, and the forced tokens are marked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str = (
        "Think step by step before you answer. Write your thoughts first, then close them with </think> "
        "and give only the final answer after it."
    )
    max_reasoning_tokens: int = Field(256, ge=1, le=100_000)


class IntendedUse(BaseModel):
    """What the data is for. Declared with a job and again with an export; the policy engine judges it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commercial: bool = Field(False, description="The student earns money.")
    competing: bool = Field(False, description="The student competes with the teacher's maker.")
    redistribution: bool = Field(False, description="The dataset itself, or the student, is given to others.")
    research: bool = Field(True, description="Research or private study.")
