"""What a teacher is to the engine: a Protocol of few methods, and the typed values that cross it."""

from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from app.domain.columns import TokenColumns
from app.domain.sampling import Elicitation, SamplingParameters
from app.domain.teacher import TeacherSpec as TeacherSpec
from app.teachers.pressure import Pressure
from app.teachers.rate_headers import RatesTold

Turn = dict[str, JsonValue]  # one chat message, JSON-ready


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to be answered by the samples named in `sample_indices` (siblings travel together).

    `sampling.seed` is the seed of sample 0; a driver asks sample i with seed + i.
    `deadline_s`: seconds that the whole call may take.
    `priority`: the job's, higher first, for servers that queue by it.
    """

    messages: tuple[Turn, ...]
    sampling: SamplingParameters
    sample_indices: tuple[int, ...] = (0,)
    top_logprobs: int = 0
    tools: tuple[dict[str, JsonValue], ...] | None = None
    response_schema: dict[str, JsonValue] | None = None
    elicit: Elicitation | None = None
    request_id: str = ""
    priority: int = 0
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the teacher reports them; None where it does not say (never 0 for unknown).

    `prompt_tokens` hold the cached ones, `completion_tokens` the reasoning ones, whatever the teacher's habit.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    billed_prompt_tokens: int | None = None  # where siblings share one request's prompt; None: all of them
    cost_usd: Decimal | None = None  # where the provider itself says what it charged


@dataclass(frozen=True, slots=True)
class Generation:
    """One sample that a teacher made."""

    sample_index: int
    answer: str
    finish_reason: str  # stop | length | tool_calls | content_filter | …, as the teacher says it
    request_hash: bytes  # SHA-256 of the request body as sent
    response_hash: bytes  # SHA-256 of the response body as received
    usage: Usage = Usage()
    reasoning: str | None = None
    reasoning_source: str | None = None  # native | elicited
    reasoning_truncated: bool = False
    tool_calls: list[dict[str, JsonValue]] | None = None
    tokens: TokenColumns | None = None
    engine: str | None = None  # system_fingerprint or engine and version
    calls: int = 1  # HTTP requests that it took
    provider_extra: dict[str, JsonValue] | None = None  # e.g. signatures of reasoning blocks


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What probing found. `reachable=False` carries the reason in `problems`; everything else is then unknown."""

    reachable: bool
    engine: str | None = None  # "vllm 0.32.0", "llama.cpp b4567"
    served_model: str | None = None
    max_model_len: int | None = None
    max_top_logprobs: int = 0  # 0: no usable logprobs
    token_ids: bool = False  # real ids, not only token text
    prompt_token_ids: bool = False
    reasoning_field: str | None = None
    native_n: bool = False  # one request may ask for n samples
    seed: bool = False
    scoring: bool = False
    compact_route: bool = False
    batch_api: bool = False
    hosted: bool = False  # a provider's API: it says itself when it is too much (429)
    tokenizer_sha256: str | None = None
    chat_template_sha256: str | None = None
    vocab_size: int | None = None
    weights_sha256: str | None = None  # a fingerprint of the weight files, where the server tells one
    details: dict[str, JsonValue] = field(
        default_factory=dict
    )  # whatever else provenance wants: dtype, hardware …
    refuses: tuple[str, ...] = ()  # sampling parameters that it does not take: they are not sent
    problems: tuple[str, ...] = ()  # full sentences; why something is off or refused

    def identity(self) -> dict[str, JsonValue]:
        """What must not change while a job runs: engine, model, weights and template (JSON-ready)."""
        found: dict[str, JsonValue] = {
            "engine": self.engine,
            "served_model": self.served_model,
            "tokenizer_sha256": self.tokenizer_sha256,
            "chat_template_sha256": self.chat_template_sha256,
        }
        return found if self.weights_sha256 is None else {**found, "weights_sha256": self.weights_sha256}

    def as_json(self) -> dict[str, JsonValue]:
        return {**asdict(self), "refuses": list(self.refuses), "problems": list(self.problems)}


@runtime_checkable
class Gauged(Protocol):
    """A driver whose server tells its load. None where this one does not."""

    async def pressure(self) -> Pressure | None: ...


@runtime_checkable
class TellsRates(Protocol):
    """A driver whose API tells its limits with each answer. None: it told nothing yet."""

    @property
    def rates_told(self) -> RatesTold | None: ...


class Teacher(Protocol):
    """A driver bound to one registered teacher. Used from one event loop.

    `generate` is one request to the teacher. It returns as many `Generation`s as `sample_indices` (fewer: the missing
    ones are asked again) and raises `TransientTeacherError`, `PermanentTeacherError` or a subclass. It does not
    retry: the engine does. The engine asks for more than one sample only where `capabilities().native_n` holds.
    """

    async def capabilities(self) -> Capabilities: ...

    async def generate(self, request: GenerateRequest) -> list[Generation]: ...

    async def score(self, prompt_ids: list[int], token_ids: list[int], top_logprobs: int) -> TokenColumns: ...

    async def aclose(self) -> None: ...
