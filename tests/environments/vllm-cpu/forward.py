"""What a plain transformers forward pass says of given tokens: an implementation that shares no code with vLLM's.

    python forward.py CHECKPOINT CASES.json RESULT.npz

A case is {"prompt_ids", "token_ids", "candidates"}: one row of candidate ids for each token. For case i the result has
`asked_i` [T, k], the logprobs of the candidates; `own_i` [T], of the tokens; `top_i` [T, 20], the largest there are;
`top_ids_i`. All in float32, at temperature 1, over the whole vocabulary.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(checkpoint: str, cases: str, result: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    made: dict[str, np.ndarray] = {}
    for i, case in enumerate(json.loads(Path(cases).read_text())):
        prompt, tokens = case["prompt_ids"], case["token_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
            rows = torch.log_softmax(logits, dim=-1)
        top = rows.topk(20, dim=-1)
        made[f"asked_{i}"] = rows.gather(1, torch.tensor(case["candidates"])).numpy()
        made[f"own_{i}"] = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()
        made[f"top_{i}"], made[f"top_ids_{i}"] = top.values.numpy(), top.indices.numpy()
    np.savez(result, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
