"""Teachers: models behind drivers. The registry of drivers is here; each is imported when it is first used."""

from collections.abc import Callable

from app.errors import InvalidInput, Unsupported
from app.teachers.addresses import TeacherAccess as TeacherAccess
from app.teachers.base import Teacher, TeacherSpec
from app.teachers.batches import BATCH_OPTION, BatchTeacher


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


def _openai_batches(spec: TeacherSpec, access: TeacherAccess, most: int | None) -> BatchTeacher:
    from app.teachers.openai import OpenAITeacher
    from app.teachers.openai_batches import OpenAIBatches

    return OpenAIBatches(OpenAITeacher(spec, access), most)


def _anthropic_batches(spec: TeacherSpec, access: TeacherAccess, most: int | None) -> BatchTeacher:
    from app.teachers.anthropic import AnthropicTeacher
    from app.teachers.anthropic_batches import AnthropicBatches

    return AnthropicBatches(AnthropicTeacher(spec, access), most)


def _gemini_batches(spec: TeacherSpec, access: TeacherAccess, most: int | None) -> BatchTeacher:
    from app.teachers.gemini import GeminiTeacher
    from app.teachers.gemini_batches import GeminiBatches

    return GeminiBatches(GeminiTeacher(spec, access), most)


_BATCH_APIS: dict[str, Callable[[TeacherSpec, TeacherAccess, int | None], BatchTeacher]] = {
    "openai": _openai_batches,
    "anthropic": _anthropic_batches,
    "gemini": _gemini_batches,
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


def batch_drivers() -> tuple[str, ...]:
    """Those whose providers have batch APIs."""
    return tuple(_BATCH_APIS)


def without_batch_api(spec: TeacherSpec) -> str | None:
    """Why this teacher has no batch API, as far as that is known without asking; None: it may have one."""
    if spec.driver not in _BATCH_APIS:
        return f"the driver `{spec.driver}` has no batch API; these have: {', '.join(batch_drivers())}"
    if spec.driver == "openai":
        from app.teachers.providers import PROVIDERS

        provider = PROVIDERS.get(str(spec.options.get("provider", "generic")))
        if provider is not None and provider.batch is None:
            return f"the provider `{provider.name}` has no batch API that the driver `openai` knows"
    return None


def build_batches(spec: TeacherSpec, access: TeacherAccess) -> BatchTeacher:
    """The batch API of this teacher's provider. Talks to nobody.

    Raises what `build` raises, and `Unsupported` where there is none.
    """
    if (why := without_batch_api(spec)) is not None:
        raise Unsupported(why)
    made = _BATCH_APIS[spec.driver]
    most = spec.options.get(BATCH_OPTION)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise InvalidInput(f"`{BATCH_OPTION}` is a number of requests, 1 or more")
    return made(spec, access, most)
