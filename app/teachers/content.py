"""Parts of OpenAI's chat messages, as the drivers of other formats read them."""

from typing import Any

import orjson
from pydantic import JsonValue

from app.errors import Unsupported


def text_of(content: JsonValue) -> str:
    """A message's text. Raises `Unsupported` where it holds something else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(str(text) for text in texts)
    raise Unsupported("a message of this role may hold text only")


def image_of(part: dict[str, JsonValue]) -> tuple[str | None, str]:
    """(media type, base64) of an `image_url` part with a data URL; (None, URL) of one that points elsewhere."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise Unsupported("an image has no URL")
    if not url.startswith("data:"):
        return None, url
    head, comma, data = url.partition(",")
    kind, _, coding = head.removeprefix("data:").partition(";")
    if not comma or coding != "base64":
        raise Unsupported("an image's data URL is not in base64")
    return kind, data


def arguments_of(call: JsonValue) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of a tool call in OpenAI's shape."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Unsupported("a tool call has no function")
    try:
        arguments = orjson.loads(str(function.get("arguments") or "{}"))
    except orjson.JSONDecodeError as error:
        raise Unsupported(f"a tool call's arguments are no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise Unsupported("a tool call's arguments are no object")
    return str(function.get("name")), arguments
