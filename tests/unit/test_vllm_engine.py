"""Driver `vllm-engine` where there is no vLLM: what it takes, and that nobody but a worker loads it."""

import asyncio
import os
from typing import Any

import pytest

from app.domain.sampling import SamplingParameters
from app.errors import InvalidInput, TeacherUnavailable
from app.teachers import TeacherAccess, build
from app.teachers.base import GenerateRequest, TeacherSpec
from app.teachers.vllm_engine import VllmEngineTeacher, _hold, load_in_this_process


def opened(**changes: Any) -> VllmEngineTeacher:
    given: dict[str, Any] = {"name": "t", "driver": "vllm-engine", "model": "m"}
    made = build(TeacherSpec(**(given | changes)), TeacherAccess())
    assert isinstance(made, VllmEngineTeacher)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://127.0.0.1:1"},
        {"secret_ref": "env:X"},
        {"options": {"dtype": "float32"}},
        {"options": {"engine": "float32"}},
        {"options": {"engine": {"model": "another"}}},
        {"options": {"engine": {"logprobs_mode": "raw_logits"}}},
    ],
)
def test_what_it_has_no_use_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        opened(**changes)


def test_without_vllm_it_says_what_is_missing_and_only_workers_load() -> None:
    async def work() -> None:
        teacher = opened()
        found = await teacher.capabilities()
        assert not found.reachable
        assert "retort[vllm]" in found.problems[0]
        turn: Any = {"role": "user", "content": "a"}
        with pytest.raises(TeacherUnavailable, match="only a worker"):
            await teacher.generate(GenerateRequest((turn,), SamplingParameters()))
        load_in_this_process()
        found = await teacher.capabilities()
        assert not found.reachable
        assert "vLLM cannot be loaded here" in found.problems[0]
        await teacher.aclose()

    asyncio.run(work())


def test_one_process_holds_an_engine() -> None:
    spec = TeacherSpec("t", "vllm-engine", f"m{os.getpid()}")
    with _hold(spec, {}):
        with pytest.raises(TeacherUnavailable, match=f"in process {os.getpid()} of this machine"):
            _hold(spec, {})
        _hold(spec, {"max_model_len": 1}).close()
    _hold(spec, {}).close()
