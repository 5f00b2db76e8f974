"""Teachers: models behind drivers. The registry of drivers is here; each is imported when it is first used."""

from collections.abc import Callable

from app.errors import InvalidInput
from app.teachers.addresses import TeacherAccess as TeacherAccess
from app.teachers.base import Teacher, TeacherSpec


def _embedded(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.embedded import EmbeddedTeacher

    return EmbeddedTeacher(spec)


def _openai(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.openai import OpenAITeacher

    return OpenAITeacher(spec, access)


def _vllm(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.vllm import VllmTeacher

    return VllmTeacher(spec, access)


def _anthropic(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.anthropic import AnthropicTeacher

    return AnthropicTeacher(spec, access)


def _gemini(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.gemini import GeminiTeacher

    return GeminiTeacher(spec, access)


def _vllm_engine(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    from app.teachers.vllm_engine import VllmEngineTeacher

    return VllmEngineTeacher(spec)


_DRIVERS: dict[str, Callable[[TeacherSpec, TeacherAccess], Teacher]] = {
    "embedded": _embedded,
    "openai": _openai,
    "vllm": _vllm,
    "vllm-engine": _vllm_engine,
    "anthropic": _anthropic,
    "gemini": _gemini,
}


def known_drivers() -> tuple[str, ...]:
    return tuple(_DRIVERS)


def build(spec: TeacherSpec, access: TeacherAccess) -> Teacher:
    """The driver, bound to this teacher. Talks to nobody.

    Raises `InvalidInput` for an unknown driver, an option that it does not take or a URL that is none, `Unsupported`
    for an address that may not be called, `TeacherRefusedKey` for a secret that cannot be read.
    """
    driver = _DRIVERS.get(spec.driver)
    if driver is None:
        raise InvalidInput(f"there is no driver {spec.driver!r}; known: {', '.join(known_drivers())}")
    return driver(spec, access)
