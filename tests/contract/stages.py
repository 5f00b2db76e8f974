"""Every driver of the registry with a server to speak to. A new driver stands here too, or the contract test fails."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count

from app.domain.teacher import TeacherSpec
from app.teachers import TeacherAccess, build, embedded_model, llama_cpp
from app.teachers.base import Teacher
from app.teachers.scripted import Script, ScriptedTeacher
from tests.fixtures.loopback import serving
from tests.fixtures.provider_apis import KEY, ApiState, anthropic_api, gemini_api

ACCESS = TeacherAccess(allow_loopback=True)
_numbers = count()


@dataclass(frozen=True)
class Stage:
    """A driver and its server. `real`: a model answers, not a script. `state`: of a recorded-shape server."""

    spec: TeacherSpec
    real: bool = False
    over_http: bool = True
    keyed: bool = False
    state: ApiState = field(default_factory=ApiState)

    def teacher(self) -> Teacher:
        return build(self.spec, ACCESS)


@contextmanager
def secret(value: str) -> Iterator[str]:
    """A secret in the environment, by reference."""
    name = f"CONTRACT_KEY_{next(_numbers)}"
    os.environ[name] = value
    try:
        yield f"env:{name}"
    finally:
        del os.environ[name]


@contextmanager
def embedded() -> Iterator[Stage]:
    embedded_model.fetch()
    yield Stage(TeacherSpec("t", "embedded", embedded_model.MODEL), real=True, over_http=False)


@contextmanager
def openai_scripted() -> Iterator[Stage]:
    with serving(lambda: ScriptedTeacher(Script(tokens=12)).application()) as url:
        yield Stage(
            TeacherSpec("t", "openai", "scripted", base_url=f"{url}/v1", options={"provider": "vllm"})
        )


@contextmanager
def vllm() -> Iterator[Stage]:
    with serving(lambda: ScriptedTeacher(Script(tokens=12)).application()) as url:
        yield Stage(TeacherSpec("t", "vllm", "scripted", base_url=f"{url}/v1"))


@contextmanager
def openai_llama_cpp() -> Iterator[Stage]:
    """llama.cpp's own HTTP server, with the embedded model."""
    embedded_model.fetch()
    engine = llama_cpp.running(embedded_model.verified_path())
    with secret(engine.key) as reference:
        yield Stage(
            TeacherSpec(
                "t",
                "openai",
                "any",
                base_url=f"{engine.url}/v1",
                secret_ref=reference,
                options={"provider": "llama.cpp"},
            ),
            real=True,
            keyed=True,
        )


@contextmanager
def anthropic() -> Iterator[Stage]:
    state = ApiState()
    with serving(lambda: anthropic_api(state)) as url, secret(KEY) as reference:
        spec = TeacherSpec("t", "anthropic", "claude-opus-4", base_url=url, secret_ref=reference)
        yield Stage(spec, keyed=True, state=state)


@contextmanager
def gemini() -> Iterator[Stage]:
    state = ApiState()
    with serving(lambda: gemini_api(state)) as url, secret(KEY) as reference:
        spec = TeacherSpec("t", "gemini", "gemini-2.5-pro", base_url=f"{url}/v1beta", secret_ref=reference)
        yield Stage(spec, keyed=True, state=state)


STAGES: dict[str, Callable[[], AbstractContextManager[Stage]]] = {
    "embedded": embedded,
    "openai": openai_scripted,
    "vllm": vllm,
    "openai-llama.cpp": openai_llama_cpp,
    "anthropic": anthropic,
    "gemini": gemini,
}

SECOND = frozenset({"openai-llama.cpp"})  # another server for a driver that stands there already
SLOW = frozenset({"embedded", "openai-llama.cpp"})  # a model runs on this machine's processor
