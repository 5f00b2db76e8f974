"""Options of the form NAME=VALUE."""

import orjson
import typer
from pydantic import JsonValue


def pair(text: str, option: str = "--option") -> tuple[str, JsonValue]:
    """A value that is JSON is taken as such, anything else is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r}: write NAME=VALUE", param_hint=option)
    try:
        found: JsonValue = orjson.loads(value)
    except orjson.JSONDecodeError:
        found = value
    return name, found
