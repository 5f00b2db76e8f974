"""A small client of the REST API: what the command line and the demo speak through."""

import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]  # an answer of the API, as its OpenAPI description tells it

_CONNECT_TRIES = 3


class ServiceUnreachable(Exception):
    """Nothing answers at the service's address."""


class ClientError(Exception):
    """The service refused; `problem` is its RFC 9457 document."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status = status
        self.problem = problem


class RetortClient:
    """One connection pool to one service. Use it as a context manager, or call `close`."""

    def __init__(self, url: str, key: str | None, timeout: float = 60) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> "RetortClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- one request -------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, **options: Any) -> Json:
        """The decoded answer; `{}` where there is none. Raises `ClientError`, `ServiceUnreachable`."""
        answer = self._send(method, path, **options)
        found: Json = answer.json() if answer.content else {}
        return found

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(1, _CONNECT_TRIES + 1):
            try:
                answer = self._http.request(method, path, **options)
                break
            except httpx.ConnectError as error:
                if attempt == _CONNECT_TRIES:
                    raise ServiceUnreachable(f"nothing answers at {self.url}: {error}") from error
                time.sleep(0.2 * attempt)
            except httpx.TransportError as error:
                raise ServiceUnreachable(f"{self.url} broke off: {error!r}") from error
        return _checked(answer)

    def pages(self, path: str, **params: Any) -> Iterator[Json]:
        """All items of a cursor-paginated list."""
        cursor: str | None = None
        while True:
            given = {name: value for name, value in {**params, "cursor": cursor}.items() if value is not None}
            page = self.call("GET", path, params=given)
            yield from page["items"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def ready(self) -> Json:
        """What `/readyz` says, ready or not. Raises `ServiceUnreachable`."""
        try:
            found: Json = self._http.get("/readyz", timeout=5).json()
        except (httpx.TransportError, ValueError) as error:
            raise ServiceUnreachable(f"nothing answers at {self.url}: {error}") from error
        return found

    # -- prompt sets -------------------------------------------------------------------------------------------

    def create_prompt_set(self, name: str, idempotency_key: str | None = None) -> Json:
        return self.call("POST", "/v1/prompt-sets", json={"name": name}, headers=_once(idempotency_key))

    def append_prompts(
        self,
        prompt_set: str,
        lines: Iterable[bytes],
        *,
        seal: bool = False,
        strict: bool = False,
        idempotency_key: str | None = None,
    ) -> Json:
        """Stream JSONL lines. Sent again with the same key, the append goes on where it stopped."""
        return self.call(
            "POST",
            f"/v1/prompt-sets/{prompt_set}/prompts",
            params={"seal": seal, "strict": strict},
            content=_blocks(lines),
            headers={"Content-Type": "application/x-ndjson", **_once(idempotency_key)},
            timeout=httpx.Timeout(60, read=None, write=None),
        )

    def prompt_set(self, prompt_set: str) -> Json:
        return self.call("GET", f"/v1/prompt-sets/{prompt_set}")

    def prompt_sets(self, **filters: Any) -> Iterator[Json]:
        return self.pages("/v1/prompt-sets", **filters)

    def prompt_errors(self, prompt_set: str) -> Iterator[Json]:
        return self.pages(f"/v1/prompt-sets/{prompt_set}/errors")

    # -- teachers ----------------------------------------------------------------------------------------------

    def teachers(self) -> Iterator[Json]:
        return self.pages("/v1/teachers")

    def register_teacher(self, teacher: Json) -> Json:
        return self.call("POST", "/v1/teachers", json=teacher)

    def probe_teacher(self, name: str) -> Json:
        return self.call("POST", f"/v1/teachers/{name}/probe", timeout=180)

    # -- jobs --------------------------------------------------------------------------------------------------

    def submit_job(self, job: Json, *, dry_run: bool = False, idempotency_key: str | None = None) -> Json:
        return self.call(
            "POST", "/v1/jobs", json=job, params={"dry_run": dry_run}, headers=_once(idempotency_key)
        )

    def job(self, job: str) -> Json:
        return self.call("GET", f"/v1/jobs/{job}")

    def jobs(self, **filters: Any) -> Iterator[Json]:
        return self.pages("/v1/jobs", **filters)

    def act_on_job(self, job: str, verb: str, body: Json | None = None) -> Json:
        """`pause`, `resume`, `cancel` or `retry`."""
        return self.call("POST", f"/v1/jobs/{job}/{verb}", json=body)

    def completions(self, job: str, **filters: Any) -> Iterator[Json]:
        return self.pages(f"/v1/jobs/{job}/completions", **filters)

    # -- exports -----------------------------------------------------------------------------------------------

    def create_export(self, export: Json, idempotency_key: str | None = None) -> Json:
        return self.call("POST", "/v1/exports", json=export, headers=_once(idempotency_key))

    def export(self, export: str) -> Json:
        return self.call("GET", f"/v1/exports/{export}")

    def exports(self, **filters: Any) -> Iterator[Json]:
        return self.pages("/v1/exports", **filters)

    def download(self, export: str, name: str, target: Path, checksum: str) -> None:
        """Fetch one file of an export, going on with a part that is there; its SHA-256 is checked at the end.

        Raises `ClientError`, `ServiceUnreachable`, and `ValueError` for bytes that are not the export's.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            with self._http.stream("GET", f"/v1/exports/{export}/files/{name}", headers=headers) as answer:
                if answer.status_code == 416:
                    part.unlink()
                    return self.download(export, name, target, checksum)
                if answer.is_error:
                    answer.read()
                    _checked(answer)
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for block in answer.iter_bytes(1 << 20):
                        file.write(block)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self.url} broke off: {error}") from error
        digest = sha256()
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != checksum:
            part.unlink()
            raise ValueError(
                f"{name} arrived damaged (SHA-256 {digest.hexdigest()}, not {checksum}): try again"
            )
        part.replace(target)


def _checked(answer: httpx.Response) -> httpx.Response:
    if not answer.is_error:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = {"detail": answer.text[:500]}
    raise ClientError(answer.status_code, problem)


def _once(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines gathered to blocks of some 64 KiB, each line ended."""
    block = bytearray()
    for line in lines:
        block += line if line.endswith(b"\n") else line + b"\n"
        if len(block) >= 1 << 16:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
