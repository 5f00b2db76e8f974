"""The driver `vllm` alone, by one of its routes: asks, makes columns, forgets. Driven by `tests.bench.contenders`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

from app.domain.sampling import SamplingParameters
from app.domain.teacher import TeacherSpec
from app.teachers.addresses import TeacherAccess
from app.teachers.base import GenerateRequest
from app.teachers.vllm import VllmTeacher


async def run(teacher: VllmTeacher, task: dict[str, Any], prompts: Iterator[str]) -> int:
    sampling = SamplingParameters(max_tokens=task["tokens"], temperature=1.0, seed=1)
    answered = 0

    async def one_after_another() -> None:
        nonlocal answered
        for prompt in prompts:
            turn: dict[str, Any] = {"role": "user", "content": prompt}
            request = GenerateRequest(messages=(turn,), sampling=sampling, top_logprobs=task["k"])
            (made,) = await teacher.generate(request)
            assert made.tokens is not None
            assert made.tokens.topk_logprobs.shape == (task["tokens"], task["k"])
            answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(task["in_flight"]):
            group.create_task(one_after_another())
    return answered


async def main() -> None:
    task = json.loads(sys.argv[1])
    spec = TeacherSpec(
        "bench", "vllm", task["model"], base_url=task["base_url"], options={"route": task["client"]}
    )
    teacher = VllmTeacher(spec, TeacherAccess(allow_loopback=True))
    prompts = json.loads(sys.stdin.readline())
    found = await teacher.capabilities()
    assert found.reachable, found.problems
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({"rows": await run(teacher, task, iter(prompts))}), flush=True)
    sys.stdin.readline()
    await teacher.aclose()


if __name__ == "__main__":
    asyncio.run(main())
