"""distilabel, as its documentation drives an OpenAI-compatible server: a pipeline of one `TextGeneration` step.

Runs in the environment `tests/environments/distilabel`, alone: nothing of ours is imported. Prompts come and the result
goes as one JSON line each; everything else that it says goes to standard error.
"""

import json
import os
import sys


def main() -> None:
    told = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.argv[1])
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    prompts = json.loads(sys.stdin.readline())
    generation = {"max_new_tokens": task["tokens"], "temperature": 1.0}
    if task["k"]:
        generation |= {"logprobs": True, "top_logprobs": task["k"]}
    os.write(told, b"ready\n")
    sys.stdin.readline()
    with Pipeline(name="bench", cache_dir=task["folder"]) as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": prompt} for prompt in prompts], batch_size=task["in_flight"]
        )
        generate = TextGeneration(
            llm=OpenAILLM(
                model=task["model"],
                base_url=task["base_url"],
                api_key="none",
                generation_kwargs=generation,
            ),
            input_batch_size=task["in_flight"],
        )
        load >> generate
    distiset = pipeline.run(use_cache=True)
    rows = distiset["default"]["train"]
    answered = sum(1 for row in rows if row["generation"])
    os.write(told, json.dumps({"rows": answered}).encode() + b"\n")
    sys.stdin.readline()


if __name__ == "__main__":
    main()
