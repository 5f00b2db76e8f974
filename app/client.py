"""A small client of the REST API: what the command line and the demo speak through."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from app.recipes import JobSpec
from app.services.appends import AppendView
from app.services.audit import AuditEventView, AuditHeadView, AuditVerification
from app.services.batches.views import ProviderBatchView
from app.services.completions import CompletionOut
from app.services.decisions import DecisionSummary, DecisionView, ReplayView
from app.services.evaluations import EvaluationRequest
from app.services.export import ExportSpec, ExportView, FormatView
from app.services.generations import NewUse, UseView
from app.services.job_views import JobEstimate, JobView
from app.services.lineage import ForwardLineage, RowLineage
from app.services.overrides import NewLicenceOverride, NewTermsOverride, OverrideView
from app.services.policy import PolicyForecast
from app.services.projects import KeyView, NewKeyView, ProjectView, Role
from app.services.prompt_sets import PromptErrorView, PromptSetView, PromptView
from app.services.retrying import RetryView
from app.services.takedown import TakedownForecast, TakedownRequest, TakedownView
from app.services.teachers import NewTeacher, TeacherLoad, TeacherView
from app.services.terms_views import PolicyView, TermsView

M = TypeVar("M", bound=BaseModel)

PATIENCE_SECONDS = 10.0  # how long a request that may be sent again is sent again
FIRST_PATIENCE_SECONDS = 1.0  # as long as nothing has ever answered: most likely nothing runs there
UPLOAD_PATIENCE_SECONDS = 120.0  # the service lets an upload be taken over when it was silent for 60 s
_BLOCK = 64 * 1024
_BUSY = (502, 503, 504)


class ServiceUnreachable(Exception):
    """Nothing answers at the service's address, or what answers there is broken."""


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(frozen=True)

    detail: str
    pointer: str | None = None
    line: int | None = None


class Problem(BaseModel):
    """What a refusal tells (RFC 9457)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = ""
    title: str = ""
    status: int
    detail: str
    request_id: str | None = None
    errors: tuple[Fault, ...] = ()

    @property
    def kind(self) -> str:
        """The stable slug, for example `not-found`."""
        return self.type.rpartition(":")[2]


class Readiness(BaseModel):
    """What `/readyz` tells."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ready", "degraded", "unready"]
    database: str
    broker: str


class ServiceRefused(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class RetortClient:
    """One service, one key. A context manager. Every method raises `ServiceUnreachable` and `ServiceRefused`.

    Requests that change nothing, or carry an `Idempotency-Key`, are sent again for `patience` seconds while the
    service is away or busy; the others only where no connection was made. A service that never answered is given up
    sooner.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        patience: float = PATIENCE_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.url = url.rstrip("/")
        self._patience = patience
        self._answered = False
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=60, trust_env=False, transport=transport
        )

    def __enter__(self) -> "RetortClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ready(self) -> Readiness:
        """What `/readyz` says, ready or not; asked once."""
        try:
            return Readiness.model_validate_json(self._http.get("/readyz", timeout=10).content)
        except (httpx.TransportError, ValidationError) as error:
            raise ServiceUnreachable(f"nothing like Retort answers at {self.url}: {error}") from error

    # Prompt sets

    def create_prompt_set(self, name: str, idempotency_key: str | None = None) -> PromptSetView:
        return self._post("/v1/prompt-sets", PromptSetView, {"name": name}, key=idempotency_key)

    def append_prompts(
        self,
        prompt_set: str,
        opened: Callable[[], BinaryIO],
        idempotency_key: str,
        *,
        seal: bool = False,
        strict: bool = False,
        sent: Callable[[int], None] = lambda n_bytes: None,
    ) -> AppendView:
        """Stream lines of JSON. After a cut it is sent again, and the service goes on behind its last committed line.

        `opened` gives the stream from its beginning, each time it is called; `sent` is told how many bytes are out.
        """

        def blocks() -> Iterator[bytes]:
            n_bytes = 0
            with opened() as stream:
                while block := stream.read(_BLOCK):
                    yield block
                    n_bytes += len(block)
                    sent(n_bytes)

        def once() -> httpx.Response:
            return self._http.post(
                f"/v1/prompt-sets/{_quoted(prompt_set)}/prompts",
                params={"seal": seal, "strict": strict},
                content=blocks(),
                headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key},
                timeout=httpx.Timeout(60, read=600, write=600),
            )

        return self._parsed(AppendView, self._patiently(once, UPLOAD_PATIENCE_SECONDS, again=True))

    def seal_prompt_set(self, prompt_set: str) -> PromptSetView:
        return self._post(f"/v1/prompt-sets/{_quoted(prompt_set)}/seal", PromptSetView, again=True)

    def prompt_set(self, prompt_set: str) -> PromptSetView:
        return self._get(f"/v1/prompt-sets/{_quoted(prompt_set)}", PromptSetView)

    def prompt_sets(self, **filters: str | bool) -> Iterator[PromptSetView]:
        return self._pages("/v1/prompt-sets", PromptSetView, filters)

    def prompts(self, prompt_set: str) -> Iterator[PromptView]:
        return self._pages(f"/v1/prompt-sets/{_quoted(prompt_set)}/prompts", PromptView)

    def prompt_errors(self, prompt_set: str) -> Iterator[PromptErrorView]:
        return self._pages(f"/v1/prompt-sets/{_quoted(prompt_set)}/errors", PromptErrorView)

    # Teachers

    def teachers(self) -> Iterator[TeacherView]:
        return self._pages("/v1/teachers", TeacherView)

    def teacher(self, name: str) -> TeacherView:
        return self._get(f"/v1/teachers/{_quoted(name)}", TeacherView)

    def teacher_load(self, name: str) -> TeacherLoad:
        return self._get(f"/v1/teachers/{_quoted(name)}/load", TeacherLoad)

    def register_teacher(self, new: NewTeacher) -> TeacherView:
        return self._post("/v1/teachers", TeacherView, new.model_dump(mode="json", exclude_none=True))

    def probe_teacher(self, name: str) -> TeacherView:
        return self._post(f"/v1/teachers/{_quoted(name)}/probe", TeacherView, timeout=300)

    # Jobs

    def submit_job(self, spec: JobSpec, idempotency_key: str | None = None) -> JobView:
        return self._post("/v1/jobs", JobView, _body(spec), key=idempotency_key)

    def estimate_job(self, spec: JobSpec) -> JobEstimate:
        return self._post("/v1/jobs", JobEstimate, _body(spec), params={"dry_run": True}, again=True)

    def job(self, job: str) -> JobView:
        return self._get(f"/v1/jobs/{_quoted(job)}", JobView)

    def jobs(self, **filters: str) -> Iterator[JobView]:
        return self._pages("/v1/jobs", JobView, filters)

    def change_job(self, job: str, **changes: JsonValue) -> JobView:
        changed = self._patiently(
            lambda: self._http.patch(f"/v1/jobs/{_quoted(job)}", json=changes), self._patience, again=True
        )
        return self._parsed(JobView, changed)

    def pause_job(self, job: str) -> JobView:
        return self._post(f"/v1/jobs/{_quoted(job)}/pause", JobView, again=True)

    def resume_job(self, job: str) -> JobView:
        return self._post(f"/v1/jobs/{_quoted(job)}/resume", JobView, again=True)

    def cancel_job(self, job: str) -> JobView:
        return self._post(f"/v1/jobs/{_quoted(job)}/cancel", JobView, again=True)

    def retry_job(self, job: str, kinds: list[str]) -> RetryView:
        return self._post(
            f"/v1/jobs/{_quoted(job)}/retry", RetryView, {"kinds": list[JsonValue](kinds)}, again=True
        )

    def batches(self, job: str) -> Iterator[ProviderBatchView]:
        return self._pages(f"/v1/jobs/{_quoted(job)}/batches", ProviderBatchView, {})

    def completions(self, job: str, **filters: str | int) -> Iterator[CompletionOut]:
        return self._pages(f"/v1/jobs/{_quoted(job)}/completions", CompletionOut, filters)

    def failures(self, job: str, **filters: str | int) -> Iterator[CompletionOut]:
        return self._pages(f"/v1/jobs/{_quoted(job)}/failures", CompletionOut, filters)

    # Exports

    def create_export(self, spec: ExportSpec, idempotency_key: str | None = None) -> ExportView:
        return self._post("/v1/exports", ExportView, _body(spec), key=idempotency_key)

    def export(self, export: str) -> ExportView:
        return self._get(f"/v1/exports/{_quoted(export)}", ExportView)

    def exports(self) -> Iterator[ExportView]:
        return self._pages("/v1/exports", ExportView)

    def export_formats(self) -> Iterator[FormatView]:
        return self._pages("/v1/export-formats", FormatView)

    def delete_export(self, export: str) -> ExportView:
        deleted = self._patiently(
            lambda: self._http.delete(f"/v1/exports/{export}"), self._patience, again=True
        )
        return self._parsed(ExportView, deleted)

    def cancel_export(self, export: str) -> ExportView:
        return self._post(f"/v1/exports/{export}/cancel", ExportView, again=True)

    def record_use(self, export: str, use: NewUse) -> UseView:
        return self._post(f"/v1/exports/{_quoted(export)}/uses", UseView, use.model_dump(mode="json"))

    def export_uses(self, export: str) -> Iterator[UseView]:
        return self._pages(f"/v1/exports/{_quoted(export)}/uses", UseView)

    def download(self, export: str, name: str, target: Path, sha256: str) -> None:
        """Fetch a file, going on with a part that is there; it appears under its name when its SHA-256 is right.

        Raises `ValueError` for bytes that are not those.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")

        def once() -> httpx.Response:
            have = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={have}-"} if have else {}
            with self._http.stream(
                "GET", f"/v1/exports/{_quoted(export)}/files/{_quoted(name)}", headers=headers
            ) as answer:
                if answer.status_code == 416:  # all of it is there, or it is another file's: the digest tells
                    return httpx.Response(200)
                if answer.is_error:
                    answer.read()
                    return answer
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for block in answer.iter_bytes(1 << 20):
                        file.write(block)
                return httpx.Response(200)

        self._patiently(once, self._patience, again=True)
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise ValueError(f"{name} arrived damaged (SHA-256 {found}, not {sha256}): fetch it again")
        part.replace(target)

    # Project and keys

    def project(self) -> ProjectView:
        return self._get("/v1/project", ProjectView)

    def change_project(self, **changes: JsonValue) -> ProjectView:
        changed = self._patiently(
            lambda: self._http.patch("/v1/project", json=changes), self._patience, again=True
        )
        return self._parsed(ProjectView, changed)

    def keys(self) -> Iterator[KeyView]:
        return self._pages("/v1/keys", KeyView)

    def create_key(self, name: str, role: Role, loopback_only: bool) -> NewKeyView:
        return self._post(
            "/v1/keys", NewKeyView, {"name": name, "role": role, "loopback_only": loopback_only}
        )

    def revoke_key(self, key: str) -> KeyView:
        revoked = self._patiently(
            lambda: self._http.delete(f"/v1/keys/{_quoted(key)}"), self._patience, again=True
        )
        return self._parsed(KeyView, revoked)

    # How requests are made

    # The policy, the audit log, lineage and takedowns

    def policy(self) -> PolicyView:
        return self._get("/v1/policy", PolicyView)

    def terms(self, terms_id: str) -> TermsView:
        return self._get(f"/v1/policy/terms/{terms_id}", TermsView)

    def evaluate(self, asked: EvaluationRequest) -> PolicyForecast:
        return self._post("/v1/policy/evaluate", PolicyForecast, _body(asked), again=True)

    def decisions(self, **filters: str) -> Iterator[DecisionSummary]:
        return self._pages("/v1/policy/decisions", DecisionSummary, filters)

    def decision(self, decision: str) -> DecisionView:
        return self._get(f"/v1/policy/decisions/{decision}", DecisionView)

    def replay_decision(self, decision: str) -> ReplayView:
        return self._post(f"/v1/policy/decisions/{decision}/replay", ReplayView, again=True)

    def overrides(self) -> Iterator[OverrideView]:
        return self._pages("/v1/policy/overrides", OverrideView)

    def record_override(self, new: NewTermsOverride | NewLicenceOverride) -> OverrideView:
        return self._post(
            "/v1/policy/overrides", OverrideView, new.model_dump(mode="json", exclude_none=True)
        )

    def revoke_override(self, override: str, why: str) -> OverrideView:
        return self._post(f"/v1/policy/overrides/{override}/revoke", OverrideView, {"why": why}, again=True)

    def audit_events(self, **filters: str) -> Iterator[AuditEventView]:
        return self._pages("/v1/audit", AuditEventView, filters)

    def audit_head(self) -> AuditHeadView:
        return self._get("/v1/audit/head", AuditHeadView)

    def verify_audit(self, anchors: list[str]) -> AuditVerification:
        return self._get("/v1/audit/verify", AuditVerification, {"anchor": anchors})

    def lineage_of_row(self, row_id: str) -> RowLineage:
        return self._get("/v1/lineage/row", RowLineage, {"row_id": row_id})

    def lineage_to_exports(self, **origin: str | int) -> ForwardLineage:
        return self._get("/v1/lineage/exports", ForwardLineage, origin)

    def order_takedown(self, asked: TakedownRequest, idempotency_key: str | None = None) -> TakedownView:
        return self._post("/v1/takedowns", TakedownView, _body(asked), key=idempotency_key)

    def forecast_takedown(self, asked: TakedownRequest) -> TakedownForecast:
        return self._post(
            "/v1/takedowns", TakedownForecast, _body(asked), params={"dry_run": True}, again=True
        )

    def takedown(self, takedown: str) -> TakedownView:
        return self._get(f"/v1/takedowns/{takedown}", TakedownView)

    def takedowns(self) -> Iterator[TakedownView]:
        return self._pages("/v1/takedowns", TakedownView)

    def _get(self, path: str, model: type[M], params: dict[str, Any] | None = None) -> M:
        return self._parsed(
            model, self._patiently(lambda: self._http.get(path, params=params), self._patience, again=True)
        )

    def _post(
        self,
        path: str,
        model: type[M],
        body: dict[str, JsonValue] | None = None,
        *,
        params: dict[str, Any] | None = None,
        key: str | None = None,
        again: bool = False,
        timeout: float = 60,
    ) -> M:
        headers = {} if key is None else {"Idempotency-Key": key}

        def once() -> httpx.Response:
            return self._http.post(path, json=body, params=params, headers=headers, timeout=timeout)

        return self._parsed(model, self._patiently(once, self._patience, again or key is not None))

    def _pages(self, path: str, model: type[M], params: dict[str, Any] | None = None) -> Iterator[M]:
        """All items of a cursor-paginated list."""
        cursor: str | None = None
        while True:
            asked = {**(params or {}), **({} if cursor is None else {"cursor": cursor})}
            page = self._get(path, _Page, asked)
            yield from (model.model_validate(item) for item in page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _parsed(self, model: type[M], answer: httpx.Response) -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            raise ServiceUnreachable(
                f"{answer.request.url} answered something that this version does not understand: {error}"
            ) from error

    def _patiently(self, once: Callable[[], httpx.Response], patience: float, again: bool) -> httpx.Response:
        """The owner of every retry: `again` says that the request may be made twice."""
        began = time.monotonic()
        end = began + patience
        wait = 0.1
        while True:
            try:
                answer = once()
                self._answered = True
                if not answer.is_error:
                    return answer
                if not again or not _passing(answer) or time.monotonic() > end:
                    raise ServiceRefused(_problem(answer))
                wait = max(wait, min(5.0, float(answer.headers.get("Retry-After", 0))))
            except httpx.TransportError as error:
                unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if unconnected and not self._answered:
                    end = began + min(patience, FIRST_PATIENCE_SECONDS)
                if not (again or unconnected) or time.monotonic() > end:
                    raise ServiceUnreachable(f"nothing answers at {self.url} ({error})") from error
            time.sleep(wait)
            wait = min(2.0, wait * 2)


def _quoted(step: str) -> str:
    """An id or a name as one step of a path, whatever is in it. Raises `ServiceRefused` for an empty one."""
    if not step:
        raise ServiceRefused(
            Problem(type="urn:retort:problem:not-found", status=404, detail="an empty id names nothing")
        )
    quoted = quote(step, safe="", errors="replace")
    return quoted.replace(".", "%2E") if not step.strip(".") else quoted


class _Page(BaseModel):
    items: list[JsonValue]
    next_cursor: str | None


def _body(spec: JobSpec | ExportSpec | EvaluationRequest | TakedownRequest) -> dict[str, JsonValue]:
    return spec.model_dump(mode="json", exclude_unset=True)


def _passing(answer: httpx.Response) -> bool:
    """Whether the same request may succeed in a while: the service is busy, or still does it for an earlier call."""
    return answer.status_code in _BUSY or (answer.status_code == 409 and "Retry-After" in answer.headers)


def _problem(answer: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        text = answer.text.strip()[:500] or answer.reason_phrase
        return Problem(status=answer.status_code, detail=f"HTTP {answer.status_code}: {text}")
