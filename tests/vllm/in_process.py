"""Runs in vLLM's own environment, with this project's on the path: the driver `vllm-engine` as a worker would have it.

    python -m tests.vllm.in_process CHECKPOINT OPTIONS.json

Prints one JSON object of what it saw. With `--second` it only says what a second process is told.
"""

import asyncio
import json
import sys
import time
from typing import Any

from app.domain.columns import TokenColumns
from app.domain.sampling import Elicitation, SamplingParameters
from app.errors import TeacherError
from app.teachers import TeacherAccess, build
from app.teachers.base import GenerateRequest, Generation, Teacher, TeacherSpec
from app.teachers.vllm_engine import VllmEngineTeacher, load_in_this_process

STARTED = time.monotonic()


def told(columns: TokenColumns | None) -> dict[str, Any]:
    assert columns is not None
    return {
        "token_ids": columns.token_ids.tolist(),
        "topk_ids": columns.topk_ids.tolist(),
        "topk_logprobs": columns.topk_logprobs.tolist(),
        "sampled_rank": columns.sampled_rank.tolist(),
        "sampled": columns.sampled.tolist(),
        "prompt_ids": columns.prompt_ids.tolist(),
    }


def request(**changes: Any) -> GenerateRequest:
    given: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 16}
    sampling = SamplingParameters(**(given | changes.pop("sampling", {})))
    turn: Any = {"role": "user", "content": "Tell me about the sea."}
    return GenerateRequest((turn,), sampling, top_logprobs=20, **changes)


def row(made: Generation) -> dict[str, Any]:
    return {"answer": made.answer, "finish": made.finish_reason, "engine": made.engine, **told(made.tokens)}


def note(what: str) -> None:
    print(f"{time.monotonic() - STARTED:.0f} s: {what}", file=sys.stderr, flush=True)  # noqa: T201


async def refused(teacher: Teacher) -> str:
    """What a request that vLLM does not take is told."""
    try:
        await teacher.generate(request(response_schema={"type": "no such type"}))
    except TeacherError as error:
        return error.kind
    return "nothing"


async def main(model: str, options: dict[str, Any], second: bool) -> dict[str, Any]:
    spec = TeacherSpec("t", "vllm-engine", model, options={"engine": options})
    teacher = build(spec, TeacherAccess())
    assert isinstance(teacher, VllmEngineTeacher)
    if not second:
        before = await teacher.capabilities()
        assert before.problems, "a process that is no worker must not load the engine"
    load_in_this_process()
    found = await teacher.capabilities()
    note("loaded")
    if second:
        return {"reachable": found.reachable, "problems": found.problems}
    seen: dict[str, Any] = {"capabilities": found.as_json()}
    plain = await teacher.generate(request(sample_indices=(0, 1)))
    seen["plain"] = [row(one) for one in plain]
    elicited = await teacher.generate(request(elicit=Elicitation(max_reasoning_tokens=6)))
    seen["elicited"] = row(elicited[0])
    stopped = await teacher.generate(request(sampling={"temperature": 0, "stop": (" a",)}))
    seen["stopped"] = row(stopped[0])
    note("generated")
    first = plain[0].tokens
    assert first is not None
    scored = await teacher.score(first.prompt_ids.tolist(), first.token_ids.tolist(), 20)
    seen["scored"] = told(scored)
    seen["refused"] = await refused(teacher)

    loaded = await teacher._loaded()
    call = asyncio.create_task(teacher.generate(request(sampling={"max_tokens": 900, "temperature": 2.0})))
    end = time.monotonic() + 60
    while loaded.engine.get_num_unfinished_requests() == 0 and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    seen["running"] = loaded.engine.get_num_unfinished_requests()
    note("cancel")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    seen["after_cancel"] = loaded.engine.get_num_unfinished_requests()

    command = [sys.executable, "-m", "tests.vllm.in_process", *sys.argv[1:], "--second"]
    other = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await other.communicate()
    seen["second"] = json.loads(output.splitlines()[-1])
    await teacher.aclose()
    seen["lock_is_free"] = loaded.lock.closed
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), "--second" in sys.argv))))  # noqa: T201
