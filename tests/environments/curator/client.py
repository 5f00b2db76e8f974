"""Bespoke curator, as its documentation drives an OpenAI-compatible server: an `LLM` called on a list of prompts.

Runs in the environment `tests/environments/curator`, alone: nothing of ours is imported. Curator fetches the file of
the tokenizer cl100k_base when it starts; a byte-level stand-in of that name is registered in its place. Its limits per
minute are set out of the way, its telemetry is off.
"""

import json
import os
import sys


def _stand_in() -> None:
    import tiktoken
    from tiktoken import registry

    bytes_only = tiktoken.Encoding(
        name="cl100k_base",
        pat_str=r"\s+|\S+",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )
    registry.ENCODINGS["cl100k_base"] = bytes_only


def main() -> None:
    told = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.argv[1])
    os.environ |= {
        "TELEMETRY_ENABLED": "false",
        "CURATOR_VIEWER": "0",
        "CURATOR_CACHE_DIR": task["folder"],
        "HF_HOME": f"{task['folder']}/hf",
        "OPENAI_API_KEY": "none",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    from bespokelabs import curator

    _stand_in()
    prompts = json.loads(sys.stdin.readline())
    generation = {"max_tokens": task["tokens"], "temperature": 1.0}
    if task["k"]:
        generation |= {"logprobs": True, "top_logprobs": task["k"]}
    os.write(told, b"ready\n")
    sys.stdin.readline()

    class Teacher(curator.LLM):
        # The whole answer: what curator keeps of the logprobs, it keeps so.
        return_completions_object = False

    llm = Teacher(
        model_name=task["model"],
        backend="openai",
        backend_params={
            "base_url": task["base_url"],
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 100_000_000_000,
            "max_concurrent_requests": task["in_flight"],
        },
        generation_params=generation,
    )
    answered = len(llm(prompts).dataset)
    os.write(told, json.dumps({"rows": answered}).encode() + b"\n")
    sys.stdin.readline()


if __name__ == "__main__":
    main()
