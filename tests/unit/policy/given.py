"""Parts and teachers for the tests of the policy, and hypothesis strategies over the shipped terms."""

from datetime import date

from hypothesis import strategies as st

from app.domain.sampling import IntendedUse
from app.policy.lattice import Answer, Kind, Obligation, Permissions
from app.policy.parts import Part, TeacherRef

TODAY = date(2026, 11, 25)

STUDY = IntendedUse()
COMPETING = IntendedUse(competing=True)
COMMERCIAL = IntendedUse(commercial=True)
SHARED = IntendedUse(redistribution=True)

LLAMA = ("meta-llama/Llama-3.3-70B-Instruct", "weights")
GPT = ("gpt-4o-mini", "openai-api")
OPEN = ("Qwen/Qwen3-8B", "weights")
SCRIPTED = ("scripted", "weights")


def teacher(model: str, route: str, **more: str | None) -> TeacherRef:
    return TeacherRef(name=model.rpartition("/")[2].lower(), model=model, access_route=route, **more)


def part(
    *teachers: tuple[str, str],
    licence: str = "CC0-1.0",
    rows: int = 1,
    key: str | None = None,
    assumed: bool = False,
    examples: tuple[str, ...] = (),
) -> Part:
    """A part of rows by these (model, route) teachers; the key says what it is, unless one is given."""
    names = "+".join(f"{model} by {route}" for model, route in teachers)
    return Part(
        key=key or f"{names} | {licence}",
        teachers=tuple(teacher(model, route) for model, route in teachers),
        prompt_license=licence,
        prompt_license_assumed=assumed,
        rows=rows,
        examples=examples,
    )


answers = st.sampled_from(Answer)
obligations = st.builds(
    Obligation,
    kind=st.sampled_from(Kind),
    source=st.sampled_from(["a", "b", "c"]),
    text=st.sampled_from(["do this", "do that"]),
    value=st.sampled_from(["", "Llama", "Llama 3", "Gemma"]),
)
licence_ids = st.sampled_from(
    ["CC-BY-SA-2.0", "CC-BY-SA-3.0", "CC-BY-SA-3.0-DE", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "ODbL-1.0"]
)
permissions = st.builds(
    Permissions,
    train=answers,
    compete=answers,
    commercial=answers,
    redistribute=answers,
    research_only=st.booleans(),
    share_alike=st.frozensets(licence_ids, max_size=3),
    obligations=st.frozensets(obligations, max_size=4),
)
uses = st.builds(
    IntendedUse,
    commercial=st.booleans(),
    competing=st.booleans(),
    redistribution=st.booleans(),
    research=st.booleans(),
)
some_teachers = st.sampled_from(
    [
        LLAMA,
        GPT,
        OPEN,
        SCRIPTED,
        ("google/gemma-3-27b-it", "weights"),
        ("Qwen/Qwen2.5-72B-Instruct", "together"),
        ("deepseek-chat", "deepseek-api"),
        ("mistralai/Mistral-Large-Instruct-2411", "weights"),
        ("somebody/unheard-of", "weights"),
    ]
)
some_licences = st.sampled_from(
    [
        "CC0-1.0",
        "MIT",
        "CC-BY-4.0",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "ODbL-1.0",
        "CC-BY-NC-4.0",
        "CC-BY-ND-4.0",
        "NOASSERTION",
        "NONE",
        "LicenseRef-own",
        "CC-BY-NC-4.0 OR CC-BY-SA-4.0",
        "ODC-By-1.0 AND CC-BY-4.0",
    ]
)
datasets = st.lists(
    st.builds(
        lambda teachers, licence, rows: part(*teachers, licence=licence, rows=rows),
        st.lists(some_teachers, min_size=1, max_size=2, unique=True),
        some_licences,
        st.integers(0, 1000),
    ),
    max_size=6,
    unique_by=lambda p: p.key,
)
