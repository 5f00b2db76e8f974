"""Gemini's batch mode, with the requests inside its one request: the API's bound for that is 20 MB."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from app.domain.fingerprints import sha256
from app.errors import MalformedAnswer
from app.teachers.base import GenerateRequest, Generation, Teacher
from app.teachers.batches import BatchLimits, BatchState, BatchTold
from app.teachers.gemini import GeminiTeacher
from app.teachers.gemini_content import generation
from app.teachers.replies import error_of, json_of

_SECONDS = 600.0
_PAGES = 50
_MOST_RESULT_BYTES = 1 << 30
_LIMITS = BatchLimits(max_requests=2000, max_bytes=15 * 1024 * 1024)
_ENDED = ("SUCCEEDED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")


class GeminiBatches:
    """See `app.teachers.batches.BatchTeacher`."""

    def __init__(self, teacher: GeminiTeacher, max_requests: int | None) -> None:
        self._teacher = teacher
        self._http = teacher.http
        self.limits = _LIMITS.at_most(max_requests)

    @property
    def teacher(self) -> Teacher:
        return self._teacher

    def line(self, request: GenerateRequest, custom_id: str) -> bytes:
        body, _ = self._teacher.body(request, request.sample_indices[0])
        return b'{"request":' + body + b',"metadata":' + orjson.dumps({"key": custom_id}) + b"}"

    async def submit(self, token: str, file: Path, n_requests: int, again: bool) -> BatchTold:
        lines = (await asyncio.to_thread(file.read_bytes)).rstrip(b"\n").replace(b"\n", b",")
        head = b'{"batch":{"displayName":' + orjson.dumps(token)
        body = head + b',"inputConfig":{"requests":{"requests":[' + lines + b"]}}}}"
        reply = await self._http.post(self._teacher.path("batchGenerateContent"), body, _SECONDS)
        return _told(json_of(reply))

    async def find(self, token: str, since: float, n_requests: int) -> list[BatchTold]:
        found: list[BatchTold] = []
        after = ""
        for _ in range(_PAGES):
            page = json_of(await self._http.get(f"/batches?pageSize=100{after}", _SECONDS))
            if not isinstance(page, dict):
                raise MalformedAnswer("the provider's list is no object")
            operations = page.get("operations", page.get("batches")) or []
            for one in operations:
                metadata = one.get("metadata") if isinstance(one, dict) else None
                if isinstance(metadata, dict) and metadata.get("displayName") == token:
                    found.append(_told(one))
            if not page.get("nextPageToken"):
                break
            after = f"&pageToken={quote(str(page['nextPageToken']), safe='')}"
        return found

    async def look(self, provider_id: str) -> BatchTold:
        reply = await self._http.get(f"/{provider_id}", _SECONDS)
        if reply.status == 404:
            return BatchTold(provider_id, BatchState.UNKNOWN, "not found")
        return _told(json_of(reply))

    async def cancel(self, provider_id: str) -> None:
        reply = await self._http.post(f"/{provider_id}:cancel", b"{}", _SECONDS)
        if reply.status not in (400, 404, 409):  # it has ended already
            json_of(reply)

    async def fetch(self, told: BatchTold, folder: Path) -> list[Path]:
        whole = folder / "whole"
        reply = await self._http.download(f"/{told.provider_id}", whole, _MOST_RESULT_BYTES, _SECONDS)
        if reply.status != 200:
            json_of(reply)
        target = folder / "results"
        await asyncio.to_thread(_unwrap, whole, target)
        return [target]

    def custom_id(self, line: bytes) -> str | None:
        found = orjson.loads(line)
        metadata = found.get("metadata") if isinstance(found, dict) else None
        name = metadata.get("key") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) else None

    def answer(self, line: bytes, request: GenerateRequest) -> list[Generation]:
        found = orjson.loads(line)
        error = found.get("error")
        if isinstance(error, dict):
            code, name = error.get("code"), str(error.get("status"))
            status = _STATUS.get(code, code) if isinstance(code, int) else 500
            raise error_of(status, frozenset({name}), str(error.get("message"))[:500])
        index = request.sample_indices[0]
        sent, unsent = self._teacher.body(request, index)
        self._teacher.check_model(found.get("response"))
        return [generation(found.get("response"), request, index, sha256(sent), sha256(line), unsent)]

    async def forget(self, told: BatchTold) -> None:
        reply = await self._http.delete(f"/{told.provider_id}", _SECONDS)
        if reply.status not in (200, 204, 404):
            json_of(reply)

    async def aclose(self) -> None:
        await self._teacher.aclose()


# Codes of google.rpc.Status, which stand in an answer's error, as the statuses that they are over HTTP.
_STATUS = {
    1: 499,
    3: 400,
    4: 504,
    5: 404,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    13: 500,
    14: 503,
    16: 401,
}


def _unwrap(whole: Path, target: Path) -> None:
    operation = orjson.loads(whole.read_bytes())
    responses: Any = None
    for place in (operation.get("response"), operation.get("metadata", {}).get("output")):
        inlined = place.get("inlinedResponses") if isinstance(place, dict) else None
        responses = responses or (inlined.get("inlinedResponses") if isinstance(inlined, dict) else inlined)
    if not isinstance(responses, list):
        raise MalformedAnswer("the batch has ended and tells no responses")
    with target.open("wb") as file:
        file.writelines(orjson.dumps(one) + b"\n" for one in responses)


def _told(operation: Any) -> BatchTold:
    if not isinstance(operation, dict) or not isinstance(operation.get("name"), str):
        raise MalformedAnswer("the provider's batch has no name")
    metadata = operation.get("metadata") or {}
    status = str(metadata.get("state", ""))
    word = status.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
    error = operation.get("error")
    state = BatchState.RUNNING
    if word in _ENDED:
        state = BatchState.ENDED
    elif word == "FAILED" or isinstance(error, dict):
        state = BatchState.FAILED
    stats = metadata.get("batchStats") or {}
    return BatchTold(
        provider_id=operation["name"],
        state=state,
        status=status or "pending",
        n_completed=int(stats.get("successfulRequestCount") or 0),
        n_failed=int(stats.get("failedRequestCount") or 0),
        error=str(error.get("message")) if isinstance(error, dict) else None,
        throttled=isinstance(error, dict) and error.get("code") == 8,
        ours=True,
    )
