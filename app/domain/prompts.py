"""A prompt: what is asked, under which licence, from where; and how a line becomes one."""

from functools import lru_cache
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from app.domain.fingerprints import fingerprint
from app.domain.json_text import check_nothing_lost
from app.domain.licences import normalise_license
from app.domain.sampling import SamplingOverrides
from app.errors import InvalidRow

_JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
_SHOWN_STEPS = 8  # of the path to what is wrong
NOASSERTION = "NOASSERTION"
MAX_ROW_BYTES = 4 * 1024 * 1024


class Message(BaseModel):
    """One turn, in the shape of OpenAI's chat messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, JsonValue]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError(f"a message of role {self.role!r} needs `content`")
        return self


class Prompt(BaseModel):
    """One row of a prompt set, as the user sends it. Give `prompt` (a string) or `messages` (a list), not both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = Field(None, min_length=1, description="Short for one user message.")
    messages: tuple[Message, ...] | None = Field(None, min_length=1, max_length=1000)
    custom_id: str | None = Field(
        None, max_length=256, description="Your own name for the row; kept, not used."
    )
    license: str | None = Field(None, max_length=512, description="SPDX expression, for example `CC-BY-4.0`.")
    source: str | None = Field(None, max_length=1024, description="Where the prompt comes from.")
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict, description="Anything; can be filtered on at export."
    )
    reference: JsonValue = Field(None, description="A reference answer, where one is known.")
    parameters: SamplingOverrides | None = Field(
        None, description="Sampling parameters of this prompt alone."
    )
    tools: list[dict[str, JsonValue]] | None = Field(None, max_length=256)
    response_schema: dict[str, JsonValue] | None = Field(
        None, description="JSON Schema that the answer must follow."
    )
    teacher: str | None = Field(None, max_length=128, description="Only this teacher of the job answers it.")

    @model_validator(mode="after")
    def _asks_something(self) -> "Prompt":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` (a string) or `messages` (a list of messages)")
        if self.messages is not None and self.messages[-1].role not in ("user", "tool"):
            raise ValueError(
                f"the last message must be of role 'user' or 'tool', not {self.messages[-1].role!r}"
            )
        return self

    def turns(self) -> list[dict[str, JsonValue]]:
        """The messages, JSON-ready, a bare prompt as one user message."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt}]
        return [message.model_dump(mode="json", exclude_none=True) for message in self.messages]


class StoredPrompt(BaseModel):
    """A prompt as it stands in the database: licence normalised, body canonical."""

    model_config = ConfigDict(frozen=True)

    body: (
        bytes  # canonical JSON of everything asked: messages, tools, response_schema, parameters, reference …
    )
    content_hash: bytes
    license: str
    license_assumed: bool  # True where the row gave none
    source: str | None
    custom_id: str | None
    teacher: str | None


_PROMPT = TypeAdapter(Prompt)


@lru_cache(maxsize=4096)
def _licence(expression: str) -> str:
    return normalise_license(expression)


def stored(prompt: Prompt, default_license: str | None) -> StoredPrompt:
    """Normalise a prompt for storage. A row without a licence takes the default, else NOASSERTION.

    Raises `InvalidLicense`.
    """
    assumed = prompt.license is None
    licence = _licence(prompt.license) if prompt.license is not None else (default_license or NOASSERTION)
    body: dict[str, JsonValue] = {"messages": list(prompt.turns())}
    if prompt.metadata:
        body["metadata"] = prompt.metadata
    if prompt.reference is not None:
        body["reference"] = prompt.reference
    if prompt.parameters is not None:
        body["parameters"] = prompt.parameters.model_dump(mode="json", exclude_none=True)
    if prompt.tools is not None:
        body["tools"] = list(prompt.tools)
    if prompt.response_schema is not None:
        body["response_schema"] = prompt.response_schema
    identity = {**body, "license": licence, "source": prompt.source, "custom_id": prompt.custom_id}
    if prompt.teacher is not None:
        identity["teacher"] = prompt.teacher
    return StoredPrompt(
        body=orjson.dumps(body),
        content_hash=fingerprint(identity),
        license=licence,
        license_assumed=assumed,
        source=prompt.source,
        custom_id=prompt.custom_id,
        teacher=prompt.teacher,
    )


def parse_line(line: bytes | str) -> Prompt:
    """One line of JSONL as a prompt. Raises `InvalidRow` with a reason that a person can act on."""
    if len(line) > MAX_ROW_BYTES:
        raise InvalidRow(f"the row is {len(line):,} bytes long; at most {MAX_ROW_BYTES:,} are taken")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidRow(f"not JSON: {error}") from error
    check_nothing_lost(line.encode() if isinstance(line, str) else line, value)
    return parse_value(value)


def parse_value(value: object) -> Prompt:
    """A decoded JSON value as a prompt; a bare string is one user message. Raises `InvalidRow`."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise InvalidRow(f"a row is a JSON object or a string, not {_JSON_TYPES[type(value)]}")
    try:
        return _PROMPT.validate_python(value)
    except ValidationError as error:
        raise InvalidRow(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(step)[:64] for step in problem["loc"][:_SHOWN_STEPS])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown field (put your own fields under `metadata`)"
        elif problem["type"] == "recursion_depth_exceeded":
            message, where = "nested too deeply", str(problem["loc"][0])
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
