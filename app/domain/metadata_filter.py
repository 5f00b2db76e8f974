"""A condition on a prompt's metadata: a path, and what its value must be."""

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class MetadataFilter(BaseModel):
    """Holds where the value at `path` is as asked; a prompt without that path does not pass.

    `path` names keys, separated by dots, and positions in lists: `source.pages.0`. Give one of `equals`, `any_of`,
    or `min` and/or `max` (both inclusive; numbers with numbers, text with text, as ISO dates are).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, max_length=512)
    equals: JsonValue = None
    any_of: tuple[JsonValue, ...] | None = Field(None, min_length=1, max_length=10_000)
    min: int | float | str | None = None
    max: int | float | str | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> "MetadataFilter":
        ranged = bool({"min", "max"} & self.model_fields_set)
        if ranged + ("equals" in self.model_fields_set) + ("any_of" in self.model_fields_set) != 1:
            raise ValueError(f"{self.path}: give one of `equals`, `any_of`, or a range of `min` and `max`")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, all_fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only what was given: `equals: null` is a condition of its own."""
        return {name: value for name, value in all_fields(self).items() if name in self.model_fields_set}

    def holds(self, metadata: dict[str, JsonValue]) -> bool:
        found, value = _at(metadata, self.path.split("."))
        if not found:
            return False
        if "equals" in self.model_fields_set:
            return _same(value, self.equals)
        if self.any_of is not None:
            return any(_same(value, one) for one in self.any_of)
        return (self.min is None or _at_least(value, self.min)) and (
            self.max is None or _at_least(self.max, value)
        )


def _at(value: JsonValue, steps: list[str]) -> tuple[bool, JsonValue]:
    """(found, value) at a path."""
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return False, None
    return True, value


def _same(one: JsonValue, other: JsonValue) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _at_least(value: JsonValue, bound: JsonValue) -> bool:
    """`value` ≥ `bound`. False for values that do not compare."""
    if isinstance(value, str) and isinstance(bound, str):
        return value >= bound
    if isinstance(value, bool) or isinstance(bound, bool):
        return False
    return isinstance(value, int | float) and isinstance(bound, int | float) and value >= bound
