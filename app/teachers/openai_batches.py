"""Batches of OpenAI's kind: a file of requests goes up, a batch is made of it, files of results come down."""

import asyncio
from pathlib import Path
from typing import Any

import orjson

from app.domain.fingerprints import sha256
from app.errors import MalformedAnswer, PermanentTeacherError, TransientTeacherError, Unsupported
from app.teachers.base import GenerateRequest, Generation, Teacher
from app.teachers.batches import BatchLimits, BatchState, BatchTold
from app.teachers.chat_answers import generations
from app.teachers.openai import OpenAITeacher
from app.teachers.replies import json_of
from app.teachers.transport import ApiTransport, Reply

_SECONDS = 120.0
_FILE_SECONDS = 1800.0
_MOST_RESULT_BYTES = 8 << 30
_PAGES = 50
_ENDED = frozenset({"completed", "expired", "cancelled"})
_TOKEN = "retort_batch"
_TOO_MUCH = frozenset({"token_limit_exceeded", "rate_limit_exceeded"})


class OpenAIBatches:
    """See `app.teachers.batches.BatchTeacher`."""

    def __init__(self, teacher: OpenAITeacher, max_requests: int | None) -> None:
        """Raises `Unsupported` for a provider without a batch API."""
        ways = teacher.provider.batch
        if ways is None:
            raise Unsupported(f"{teacher.provider.name} has no batch API that this driver knows")
        self._teacher = teacher
        self._ways = ways
        self._http: ApiTransport = teacher.api()
        self.limits = BatchLimits(ways.max_requests, ways.max_bytes).at_most(max_requests)

    @property
    def teacher(self) -> Teacher:
        return self._teacher

    def line(self, request: GenerateRequest, custom_id: str) -> bytes:
        body, _ = self._teacher.body(request)
        head = orjson.dumps({"custom_id": custom_id, "method": "POST", "url": self._ways.endpoint})
        return head[:-1] + b',"body":' + body + b"}"

    async def submit(self, token: str, file: Path, n_requests: int, again: bool) -> BatchTold:
        name = f"{token}.jsonl"
        size = (await asyncio.to_thread(file.stat)).st_size
        uploaded = await self._left_file(name, size) if again else None
        if uploaded is None:
            fields = {"purpose": self._ways.file_purpose}
            made = json_of(await self._http.upload("/files", fields, name, file, _FILE_SECONDS))
            uploaded = made.get("id") if isinstance(made, dict) else None
        if not isinstance(uploaded, str):
            raise MalformedAnswer("the provider took the file and did not tell its id")
        body = {
            "input_file_id": uploaded,
            "endpoint": self._ways.endpoint,
            "completion_window": self._ways.window,
            "metadata": {_TOKEN: token},
        }
        return _told(json_of(await self._http.post("/batches", orjson.dumps(body), _SECONDS)))

    async def _left_file(self, name: str, size: int) -> str | None:
        listed = json_of(
            await self._http.get(f"/files?purpose={self._ways.file_purpose}&limit=100", _SECONDS)
        )
        for one in _listed(listed):
            if one.get("filename") == name and one.get("bytes") == size:
                return str(one["id"])
        return None

    async def find(self, token: str, since: float, n_requests: int) -> list[BatchTold]:
        found: list[BatchTold] = []
        after = ""
        for _ in range(_PAGES):
            page = json_of(await self._http.get(f"/batches?limit=100{after}", _SECONDS))
            batches = _listed(page)
            for one in batches:
                metadata = one.get("metadata")
                if isinstance(metadata, dict) and metadata.get(_TOKEN) == token:
                    found.append(_told(one))
            made = [one["created_at"] for one in batches if isinstance(one.get("created_at"), int | float)]
            # Newest first; clocks may differ by some minutes.
            if not page.get("has_more") or not batches or (made and min(made) < since - 3600):
                break
            after = f"&after={batches[-1].get('id')}"
        return found

    async def look(self, provider_id: str) -> BatchTold:
        reply = await self._http.get(f"/batches/{provider_id}", _SECONDS)
        if reply.status == 404:
            return BatchTold(provider_id, BatchState.UNKNOWN, "not found")
        return _told(json_of(reply))

    async def cancel(self, provider_id: str) -> None:
        reply = await self._http.post(f"/batches/{provider_id}/cancel", b"", _SECONDS)
        if reply.status not in (400, 404, 409):  # it has ended already
            json_of(reply)

    async def fetch(self, told: BatchTold, folder: Path) -> list[Path]:
        paths = []
        for role in ("output", "error"):
            identifier = told.files.get(role)
            if identifier is None:
                continue
            target = folder / role
            reply = await self._http.download(
                f"/files/{identifier}/content", target, _MOST_RESULT_BYTES, _FILE_SECONDS
            )
            if reply.status != 200:
                json_of(reply)
            paths.append(target)
        return paths

    def custom_id(self, line: bytes) -> str | None:
        found = orjson.loads(line)
        name = found.get("custom_id") if isinstance(found, dict) else None
        return name if isinstance(name, str) else None

    def answer(self, line: bytes, request: GenerateRequest) -> list[Generation]:
        found = orjson.loads(line)
        response, error = found.get("response"), found.get("error")
        if not isinstance(response, dict):
            told = error if isinstance(error, dict) else {}
            raise TransientTeacherError(f"not answered: {told.get('code')}: {told.get('message')}")
        status = response.get("status_code")
        sent, unsent = self._teacher.body(request)
        body = orjson.dumps(response.get("body"))
        reply = Reply(status if isinstance(status, int) else 502, {"content-type": "application/json"}, body)
        answered = json_of(reply)
        self._teacher.check_model(answered)
        return generations(answered, request, sha256(sent), sha256(line), unsent)

    async def forget(self, told: BatchTold) -> None:
        for identifier in told.files.values():
            reply = await self._http.delete(f"/files/{identifier}", _SECONDS)
            if reply.status not in (200, 204, 404):
                raise PermanentTeacherError(f"file {identifier} cannot be deleted: {reply.status}")

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._teacher.aclose()


def _listed(page: Any) -> list[dict[str, Any]]:
    data = page.get("data") if isinstance(page, dict) else None
    if not isinstance(data, list):
        raise MalformedAnswer("the provider's list has no `data`")
    return [one for one in data if isinstance(one, dict)]


def _told(batch: Any) -> BatchTold:
    if not isinstance(batch, dict) or not isinstance(batch.get("id"), str):
        raise MalformedAnswer("the provider's batch has no id")
    status = str(batch.get("status"))
    state = BatchState.RUNNING
    if status in _ENDED:
        state = BatchState.ENDED
    elif status == "failed":
        state = BatchState.FAILED
    errors = batch.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else None
    causes = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    sentences = [f"{one.get('code')}: {one.get('message')} (line {one.get('line')})" for one in causes[:3]]
    counts = batch.get("request_counts") or {}
    files = {
        role: batch[f"{role}_file_id"]
        for role in ("input", "output", "error")
        if isinstance(batch.get(f"{role}_file_id"), str)
    }
    return BatchTold(
        provider_id=batch["id"],
        state=state,
        status=status,
        n_completed=int(counts.get("completed") or 0),
        n_failed=int(counts.get("failed") or 0),
        error="; ".join(sentences) or None,
        throttled=any(one.get("code") in _TOO_MUCH for one in causes),
        files=files,
        ours=True,
    )
