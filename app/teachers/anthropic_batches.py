"""Anthropic's Message Batches. They carry no mark of ours but the names of their requests, seen at their end."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from app.domain.fingerprints import sha256
from app.errors import MalformedAnswer, TransientTeacherError
from app.teachers.anthropic import AnthropicTeacher
from app.teachers.anthropic_messages import generation
from app.teachers.base import GenerateRequest, Generation, Teacher
from app.teachers.batch_files import scratch
from app.teachers.batches import BatchLimits, BatchState, BatchTold, parsed_name
from app.teachers.replies import error_of, json_of

_SECONDS = 600.0
_PAGES = 50
_MOST_RESULT_BYTES = 8 << 30
# The API takes 100,000 requests of 256 MB; what is sent is held in memory, so less is asked.
_LIMITS = BatchLimits(max_requests=20_000, max_bytes=64 * 1024 * 1024)
_CLOCKS = 900.0  # seconds by which two clocks may differ
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicBatches:
    """See `app.teachers.batches.BatchTeacher`."""

    def __init__(self, teacher: AnthropicTeacher, max_requests: int | None) -> None:
        self._teacher = teacher
        self._http = teacher.http
        self.limits = _LIMITS.at_most(max_requests)

    @property
    def teacher(self) -> Teacher:
        return self._teacher

    def line(self, request: GenerateRequest, custom_id: str) -> bytes:
        body, _ = self._teacher.body(request)
        return orjson.dumps({"custom_id": custom_id})[:-1] + b',"params":' + body + b"}"

    async def submit(self, token: str, file: Path, n_requests: int, again: bool) -> BatchTold:
        lines = (await asyncio.to_thread(file.read_bytes)).rstrip(b"\n").replace(b"\n", b",")
        body = b'{"requests":[' + lines + b"]}"
        return _told(json_of(await self._http.post("/messages/batches", body, _SECONDS)))

    async def find(self, token: str, since: float, n_requests: int) -> list[BatchTold]:
        """Those of the right age and size; the ended ones are asked for a name that they answered."""
        found: list[BatchTold] = []
        after = ""
        for _ in range(_PAGES):
            page = json_of(await self._http.get(f"/messages/batches?limit=100{after}", _SECONDS))
            data = page.get("data") if isinstance(page, dict) else None
            if not isinstance(data, list):
                raise MalformedAnswer("the provider's list has no `data`")
            made = [datetime.fromisoformat(one["created_at"]).timestamp() for one in data]
            for one, created in zip(data, made, strict=True):
                if created > since - _CLOCKS and sum(_counts(one).values()) == n_requests:
                    found.append(await self._marked(_told(one), token))
            if not page.get("has_more") or (made and min(made) < since - _CLOCKS):
                break
            after = f"&after_id={page.get('last_id')}"
        return sorted((one for one in found if one.ours is not False), key=lambda one: one.ours is None)

    async def _marked(self, told: BatchTold, token: str) -> BatchTold:
        if told.state is not BatchState.ENDED:
            return told
        with scratch() as folder:
            (results,) = await self.fetch(told, folder)
            name = self.custom_id(await asyncio.to_thread(_first_line, results))
        parsed = None if name is None else parsed_name(name)
        return _told_as(told, parsed is not None and parsed.batch == token)

    async def look(self, provider_id: str) -> BatchTold:
        reply = await self._http.get(f"/messages/batches/{provider_id}", _SECONDS)
        if reply.status == 404:
            return BatchTold(provider_id, BatchState.UNKNOWN, "not found")
        return _told(json_of(reply))

    async def cancel(self, provider_id: str) -> None:
        reply = await self._http.post(f"/messages/batches/{provider_id}/cancel", b"", _SECONDS)
        if reply.status not in (400, 404, 409):  # it has ended already
            json_of(reply)

    async def fetch(self, told: BatchTold, folder: Path) -> list[Path]:
        target = folder / "results"
        path = f"/messages/batches/{told.provider_id}/results"
        reply = await self._http.download(path, target, _MOST_RESULT_BYTES, _SECONDS)
        if reply.status != 200:
            json_of(reply)
        return [target]

    def custom_id(self, line: bytes) -> str | None:
        found = orjson.loads(line)
        name = found.get("custom_id") if isinstance(found, dict) else None
        return name if isinstance(name, str) else None

    def answer(self, line: bytes, request: GenerateRequest) -> list[Generation]:
        result = orjson.loads(line).get("result")
        kind = result.get("type") if isinstance(result, dict) else None
        if kind == "succeeded":
            sent, unsent = self._teacher.body(request)
            index = request.sample_indices[0]
            self._teacher.check_model(result.get("message"))
            return [generation(result.get("message"), request, index, sha256(sent), sha256(line), unsent)]
        if kind != "errored":
            raise TransientTeacherError(f"not answered: {kind}")
        error = result.get("error", {}).get("error", {})
        name = str(error.get("type"))
        raise error_of(_STATUS.get(name, 500), frozenset({name}), str(error.get("message"))[:500])

    async def forget(self, told: BatchTold) -> None:
        reply = await self._http.delete(f"/messages/batches/{told.provider_id}", _SECONDS)
        if reply.status not in (200, 204, 404):
            json_of(reply)

    async def aclose(self) -> None:
        await self._teacher.aclose()


def _first_line(file: Path) -> bytes:
    with file.open("rb") as lines:
        return lines.readline()


def _counts(batch: Any) -> dict[str, int]:
    counts = batch.get("request_counts") if isinstance(batch, dict) else None
    return {name: int(n) for name, n in counts.items()} if isinstance(counts, dict) else {}


def _told(batch: Any) -> BatchTold:
    if not isinstance(batch, dict) or not isinstance(batch.get("id"), str):
        raise MalformedAnswer("the provider's batch has no id")
    status, counts = str(batch.get("processing_status")), _counts(batch)
    return BatchTold(
        provider_id=batch["id"],
        state=BatchState.ENDED if status == "ended" else BatchState.RUNNING,
        status=status,
        n_completed=counts.get("succeeded", 0),
        n_failed=sum(counts.get(name, 0) for name in ("errored", "canceled", "expired")),
    )


def _told_as(told: BatchTold, ours: bool) -> BatchTold:
    return BatchTold(
        told.provider_id, told.state, told.status, told.n_completed, told.n_failed, told.error, ours=ours
    )
