"""Driver `vllm-engine` with a real engine, in vLLM's environment, against the same model behind a server."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.sampling import SamplingParameters
from app.teachers.base import GenerateRequest, Generation, Teacher
from tests.fixtures.vllm_cpu import (
    DEFAULTS,
    ENGINE,
    MAX_MODEL_LEN,
    QUIET,
    TOP_LOGPROBS,
    Talks,
    checkpoint,
    python,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_engine_in_this_process_is_the_teacher_behind_the_server(talk: Talks) -> None:
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 8,
        "max_logprobs": TOP_LOGPROBS,
        "override_generation_config": json.loads(DEFAULTS),
    }
    environment = {**os.environ, **QUIET, **ENGINE, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [python(), "-m", "tests.vllm.in_process", checkpoint(), json.dumps(options)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    seen: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])

    async def work(teacher: Teacher) -> tuple[list[Generation], dict[str, Any]]:
        turn: Any = {"role": "user", "content": "Tell me about the sea."}
        sampling = SamplingParameters(temperature=1.0, seed=11, max_tokens=16)
        asked = GenerateRequest((turn,), sampling, sample_indices=(0, 1), top_logprobs=TOP_LOGPROBS)
        return await teacher.generate(asked), (await teacher.capabilities()).as_json()

    served, told = talk(work)
    for mine, other in zip(seen["plain"], served, strict=True):
        columns = other.tokens
        assert columns is not None
        assert mine["token_ids"] == columns.token_ids.tolist()
        assert mine["prompt_ids"] == columns.prompt_ids.tolist()
        assert np.abs(np.array(mine["topk_logprobs"]) - columns.topk_logprobs).max() <= 1e-4
        assert (mine["answer"], mine["finish"]) == (other.answer, other.finish_reason)
    found = seen["capabilities"]
    for name in (
        "engine",
        "max_model_len",
        "vocab_size",
        "weights_sha256",
        "chat_template_sha256",
        "scoring",
    ):
        assert found[name] == told[name], name
    first, scored = seen["plain"][0], seen["scored"]
    assert scored["token_ids"] == first["token_ids"]
    assert np.abs(np.array(scored["topk_logprobs"]) - np.array(first["topk_logprobs"])).max() <= 1e-4
    assert not all(seen["elicited"]["sampled"])
    assert " a" not in seen["stopped"]["answer"]
    assert seen["stopped"]["finish"] == "stop"
    assert seen["refused"] == "teacher-permanent"
    assert (seen["running"], seen["after_cancel"]) == (1, 0)
    assert not seen["second"]["reachable"]
    assert "one worker process has it" in seen["second"]["problems"][0]
    assert seen["lock_is_free"]
