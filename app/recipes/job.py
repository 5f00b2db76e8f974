"""What a job is asked to be: a prompt set, teachers, parameters, and the bounds that it keeps."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.lifecycle import Execution
from app.domain.sampling import Elicitation, IntendedUse, SamplingParameters
from app.recipes.stages import MAX_SAMPLES, MAX_TOP_LOGPROBS, GenerateStage

MAX_TEACHERS = 32


class Budget(BaseModel):
    """Hard caps. The job parks when one is reached, and everything made so far is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(None, ge=1, description="Prompt and completion tokens together.")
    max_requests: int | None = Field(None, ge=1)
    max_cost_usd: float | None = Field(None, gt=0)
    max_seconds: float | None = Field(None, gt=0, description="Of wall-clock time since the job began.")


class JobSpec(BaseModel):
    """A prompt set × teachers × sampling parameters × n × top_logprobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(
        None, min_length=1, max_length=200, description="For people. Default: the set's name."
    )
    prompt_set: str = Field(min_length=1, max_length=64, description="Id of a prompt set.")
    teachers: tuple[str, ...] = Field(
        min_length=1,
        max_length=MAX_TEACHERS,
        description="Names of registered teachers; each answers every prompt.",
    )
    sampling: SamplingParameters = Field(
        SamplingParameters(), description="A prompt's own parameters go before these."
    )
    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="Samples per prompt and teacher.")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_TOP_LOGPROBS, description="Candidates kept per position; 0: none are asked for."
    )
    elicit: Elicitation | None = Field(
        None, description="Draw a reasoning trace from a teacher that gives none."
    )
    priority: int = Field(0, ge=-1000, le=1000, description="A higher one goes first.")
    max_in_flight: int | None = Field(
        None, ge=1, description="Cap of this job's calls in flight, over all workers."
    )
    follow: bool = Field(False, description="Go on with prompts that are appended, until the set is sealed.")
    reuse: bool = Field(
        False,
        description="Take equal samples of the project's other jobs, with their tokens, instead of asking: same "
        "teacher, prompt, sampling parameters and sample index.",
    )
    intended_use: IntendedUse = Field(
        IntendedUse(), description="What the data is for; the policy engine judges it."
    )
    budget: Budget | None = None
    execution: Execution = Field(
        Execution.CALLS,
        description="`batch`: through the provider's batch API, within a day and for about half the price.",
    )

    @model_validator(mode="after")
    def _each_teacher_once(self) -> "JobSpec":
        twice = sorted({name for name in self.teachers if self.teachers.count(name) > 1})
        if twice:
            raise ValueError(f"each teacher may be named once; named twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _reused_or_in_a_batch(self) -> "JobSpec":
        if self.reuse and self.execution == Execution.BATCH:
            raise ValueError("`reuse` goes with `execution: calls` only; a batch asks for everything")
        return self

    def stages(self) -> tuple[GenerateStage, ...]:
        """The steps that the engine runs, in order."""
        return (
            GenerateStage(
                sampling=self.sampling, n=self.n, top_logprobs=self.top_logprobs, elicit=self.elicit
            ),
        )
