"""A tiny model that is teacher and student at once: capture.py FOLDER

Writes FOLDER/model (a random Llama of two layers with a tokenizer of words and a chat template) and FOLDER/capture.npz:
prompts, completions drawn from the model, the k likeliest tokens at every position, their logprobs at temperature 1.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

V, K, ROWS = 320, 16, 24
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def main(folder: Path) -> None:
    torch.manual_seed(3)
    marks = [
        "<|pad|>",
        "<|end|>",
        "<|unk|>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<think>",
        "</think>",
    ]
    words = marks + [f"w{i}" for i in range(V - len(marks))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<|unk|>"
    )
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,  # far from uniform, so that a shift by one is seen
        pad_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")
    found = {}
    for row in range(ROWS):
        prompt = torch.randint(8, V, (1, 3 + row % 5))
        length = 6 + row % 7
        ids = model.generate(
            prompt, max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0, temperature=1.0
        )
        with torch.no_grad():
            logits = model(ids).logits[0].float()
        n = prompt.shape[1]
        # The distribution that completion token j was drawn from is the row before it.
        logprobs = torch.log_softmax(logits[n - 1 : -1], dim=-1)
        top = logprobs.topk(K, dim=-1)
        tokens = ids[0, n:]
        found[f"prompt_{row}"] = prompt[0].numpy().astype(np.int32)
        found[f"tokens_{row}"] = tokens.numpy().astype(np.int32)
        found[f"ids_{row}"] = top.indices.numpy().astype(np.int32)
        found[f"logprobs_{row}"] = top.values.numpy()
        found[f"own_{row}"] = logprobs.gather(1, tokens[:, None])[:, 0].numpy()
    np.savez(folder / "capture.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
