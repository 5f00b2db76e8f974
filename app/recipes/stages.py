"""The stages of a recipe: what is asked of a teacher for every prompt."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.sampling import Elicitation, SamplingParameters

MAX_TOP_LOGPROBS = 1024
MAX_SAMPLES = 1024


class GenerateStage(BaseModel):
    """Draw `n` samples per prompt, with `top_logprobs` candidates a position."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["generate"] = "generate"
    name: str = "generate"
    sampling: SamplingParameters = SamplingParameters()
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    elicit: Elicitation | None = None
