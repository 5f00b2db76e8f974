"""Export formats, by name. Adding one is a module with a `FORMAT` and a line here; each is imported when it is used."""

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from pydantic import JsonValue, ValidationError

from app.errors import InvalidInput
from app.exporters.base import Binding, DataFile, Exporter, Format, FormatOptions, Shard, Summary, Unfit

_MODULES: Final = {
    "jsonl": "app.exporters.jsonl",
    "parquet": "app.exporters.native",
    "trl-sft": "app.exporters.trl_sft",
    "trl-rollouts": "app.exporters.trl_rollouts",
    "axolotl-kd": "app.exporters.axolotl_kd",
    "distillkit": "app.exporters.distillkit",
    "tinker": "app.exporters.tinker",
    "slime": "app.exporters.slime",
    "llama-factory": "app.exporters.llama_factory",
    "ms-swift": "app.exporters.ms_swift",
    "verl": "app.exporters.verl",
    "openai-chat": "app.exporters.openai_chat",
}


def known_formats() -> tuple[str, ...]:
    return tuple(_MODULES)


def format_of(name: str) -> Format:
    """Raises `InvalidInput` with the formats that there are."""
    module = _MODULES.get(name)
    if module is None:
        raise InvalidInput(
            f"there is no format {name!r}; there are: {', '.join(_MODULES)}",
            errors=[{"detail": "no such format", "pointer": "#/format"}],
        )
    found: Format = import_module(module).FORMAT
    return found


def exporter(name: str, options: Mapping[str, JsonValue]) -> Exporter:
    """The format, bound to its options. Raises `InvalidInput` that names the format and each wrong option."""
    found = format_of(name)
    try:
        return found.build(found.options.model_validate(options))
    except ValidationError as error:
        raise _explained(name, found.options, error) from error


def _explained(name: str, options: type[FormatOptions], error: ValidationError) -> InvalidInput:
    known = ", ".join(options.model_fields) or "none"
    errors = []
    for problem in error.errors(include_url=False, include_context=False):
        where = "/".join(str(step) for step in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such option; there are: {known}"
        errors.append({"detail": message, "pointer": f"#/options/{where}" if where else "#/options"})
    first = errors[0]
    return InvalidInput(f"format {name!r}: {first['pointer']}: {first['detail']}", errors=errors)


__all__ = [
    "Binding",
    "DataFile",
    "Exporter",
    "Format",
    "FormatOptions",
    "Shard",
    "Summary",
    "Unfit",
    "exporter",
    "format_of",
    "known_formats",
]
