"""What the scripted teacher does wrong on purpose."""

import asyncio
from typing import Literal

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

FaultKind = Literal[
    "429",
    "429-retry-after",
    "500",
    "503",
    "400",
    "401",
    "hang",
    "cut",
    "drip",
    "half-json",
    "wrong-type",
    "huge",
    "nan-logprobs",
    "zero-logprobs",
    "no-logprobs",
    "no-usage",
    "no-choices",
]


class Fault(BaseModel):
    """One rule. It applies to a call if all that it names holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    share: float = Field(1.0, ge=0, le=1, description="Of all (prompt, attempt) pairs, by hash.")
    contains: str | None = Field(None, description="The last message contains this.")
    first_calls: int | None = Field(None, description="Only the first n calls for a prompt.")
    seconds: float = Field(1.0, ge=0, description="Retry-After, or the length of a hang or drip.")


def json_response(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


async def before(request: web.Request, fault: Fault) -> web.StreamResponse | None:
    """Faults that come instead of an answer."""
    match fault.kind:
        case "429" | "500" | "503" | "400" | "401":
            return json_response(
                {"error": {"message": f"scripted {fault.kind}", "code": int(fault.kind)}}, int(fault.kind)
            )
        case "429-retry-after":
            answer = json_response({"error": {"message": "scripted 429", "code": 429}}, 429)
            answer.headers["Retry-After"] = f"{fault.seconds:g}"
            return answer
        case "hang":
            await asyncio.sleep(fault.seconds)
        case "wrong-type":
            return web.Response(text="<html>scripted</html>", content_type="text/html")
        case "huge":
            answer_stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await answer_stream.prepare(request)
            block = b" " * (1 << 20)
            for _ in range(1024):
                await answer_stream.write(block)
            return answer_stream
        case "no-choices":
            return json_response({"id": "x", "choices": []})
    return None


async def after(
    request: web.Request, fault: Fault, payload: bytes, media_type: str
) -> web.StreamResponse | None:
    """Faults of an answer that was made."""
    match fault.kind:
        case "cut":
            answer = web.StreamResponse(
                headers={"Content-Type": media_type, "Content-Length": str(len(payload))}
            )
            await answer.prepare(request)
            await answer.write(payload[: len(payload) // 2])
            if request.transport is not None:
                request.transport.abort()
            return answer
        case "drip":
            answer = web.StreamResponse(headers={"Content-Type": media_type})
            await answer.prepare(request)
            for byte in payload[:40]:
                await answer.write(bytes([byte]))
                await asyncio.sleep(fault.seconds / 40)
            await answer.write(payload[40:])
            return answer
        case "half-json":
            return web.Response(body=payload[: len(payload) // 2], content_type=media_type)
    return None
