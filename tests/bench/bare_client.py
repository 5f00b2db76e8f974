"""The bare client: asks, parses, forgets. The limit that no durable service can beat. Driven by `tests.bench.scripts`.

aiohttp with orjson, or httpx with orjson: one process, one event loop, so many calls in flight.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import httpx
import orjson

Ask = Callable[[bytes], Awaitable[bytes]]


async def _all(ask: Ask, bodies: Iterator[bytes], in_flight: int) -> int:
    answered = 0

    async def one_after_another() -> None:
        nonlocal answered
        for body in bodies:  # shared: each takes the next one
            answer = orjson.loads(await ask(body))
            assert answer["choices"][0]["finish_reason"]
            answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one_after_another())
    return answered


async def with_aiohttp(url: str, bodies: Iterator[bytes], in_flight: int) -> int:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def ask(body: bytes) -> bytes:
            async with session.post(url, data=body) as response:
                response.raise_for_status()
                return await response.read()

        return await _all(ask, bodies, in_flight)


async def with_httpx(url: str, bodies: Iterator[bytes], in_flight: int) -> int:
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    async with httpx.AsyncClient(limits=limits, headers=headers, trust_env=False, timeout=600) as client:

        async def ask(body: bytes) -> bytes:
            return (await client.post(url, content=body)).raise_for_status().content

        return await _all(ask, bodies, in_flight)


def bodies_of(task: dict[str, object], prompts: list[str]) -> Iterator[bytes]:
    k = int(str(task["k"]))
    asked = {"logprobs": True, "top_logprobs": k + 1, "return_tokens_as_token_ids": True} if k else {}
    for prompt in prompts:
        yield orjson.dumps(
            {
                "model": task["model"],
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": task["tokens"],
                "temperature": 1.0,
                "seed": 1,
                "return_token_ids": True,
                **asked,
            }
        )


def main() -> None:
    task = json.loads(sys.argv[1])
    run = {"aiohttp": with_aiohttp, "httpx": with_httpx}[task["client"]]
    prompts = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    url = f"{task['base_url']}/chat/completions"
    answered = asyncio.run(run(url, bodies_of(task, prompts), task["in_flight"]))
    print(json.dumps({"rows": answered}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
