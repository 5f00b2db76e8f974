"""Trains one student twice on the same answers, from the teacher's distributions and from its tokens alone:

    student.py GGUF EXPORT [--layers 4] [--epochs 4]

GGUF is the file of the teacher's weights, EXPORT a folder of Parquet with the splits train, validation and test. The
student is the teacher with every few of its layers only (embeddings kept and frozen), so that both arms begin at one
point and differ in nothing but the loss:

    soft    KL(teacher ‖ student) over the stored candidates and one bucket for all the rest
    hard    cross-entropy on the token that the teacher drew

After each epoch the divergence from the teacher on the validation split is taken; an arm's result is the divergence
on the test split after its best epoch. Prints one line of JSON, nats per token.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

BATCH_ROWS = 8
LEARNING_RATE = 5e-4


@dataclass(frozen=True)
class Row:
    """`input_ids` [P + T]; of the T tokens of the answer their ids [T], candidates [T, k] and the rest's mass [T]."""

    input_ids: torch.Tensor
    first: int
    tokens: torch.Tensor
    candidates: torch.Tensor
    logprobs: torch.Tensor
    tail: torch.Tensor


def read(folder: Path, split: str) -> list[Row]:
    files = [str(path) for path in sorted(folder.glob(f"{split}-*.parquet"))]
    rows = []
    for row in load_dataset("parquet", data_files=files, split="train"):
        count, k = row["lp_count"], row["lp_k"]
        if not count:
            continue
        ids = torch.tensor(row["input_ids"])
        logprobs = torch.tensor(row["topk_logprobs"], dtype=torch.float32).view(count, k)
        first = row["lp_first"]
        rows.append(
            Row(
                ids,
                first,
                ids[first : first + count],
                torch.tensor(row["topk_ids"]).view(count, k),
                logprobs,
                torch.tensor(row["tail_logmass"], dtype=torch.float32),
            )
        )
    return rows


def student_of(teacher: Any, layers: int) -> Any:
    """The teacher with `layers` of its layers, spread evenly, the first and the last among them."""
    kept = [round(i * (teacher.config.num_hidden_layers - 1) / (layers - 1)) for i in range(layers)]
    config = LlamaConfig.from_dict({**teacher.config.to_dict(), "num_hidden_layers": layers})
    made = LlamaForCausalLM(config)
    weights = {name: value for name, value in teacher.state_dict().items() if ".layers." not in name}
    for new, old in enumerate(kept):
        prefix = f"model.layers.{old}."
        for name, value in teacher.state_dict().items():
            if name.startswith(prefix):
                weights[f"model.layers.{new}.{name[len(prefix) :]}"] = value
    made.load_state_dict(weights)
    made.get_input_embeddings().weight.requires_grad_(False)  # the output layer shares them
    return made


def predicted(model: Any, rows: list[Row]) -> torch.Tensor:
    """Log-probabilities [ΣT, V] of the tokens of the answers, each from the position before it."""
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.stack([functional.pad(row.input_ids, (0, longest - len(row.input_ids))) for row in rows])
    hidden = model.model(input_ids=ids).last_hidden_state  # causal: what is padded behind does not show
    wanted = torch.cat(
        [hidden[i, row.first - 1 : row.first - 1 + len(row.tokens)] for i, row in enumerate(rows)]
    )
    return functional.log_softmax(model.lm_head(wanted).float(), dim=-1)


def divergence(found: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """KL(teacher ‖ student) per token [ΣT], over the candidates and the rest."""
    ids, theirs = torch.cat([row.candidates for row in rows]), torch.cat([row.logprobs for row in rows])
    tail = torch.cat([row.tail for row in rows]).clamp(max=-1e-6)
    ours = found.gather(1, ids)
    rest = torch.log1p(-ours.exp().sum(1).clamp(max=1 - 1e-6))
    return (theirs.exp() * (theirs - ours)).sum(1) + torch.where(
        tail.isfinite(), tail.exp() * (tail - rest), torch.zeros_like(tail)
    )


def surprise(found: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    return functional.nll_loss(found, torch.cat([row.tokens for row in rows]), reduction="none")


def held_out(model: Any, rows: list[Row]) -> float:
    model.eval()
    with torch.no_grad():
        batches = [rows[i : i + BATCH_ROWS] for i in range(0, len(rows), BATCH_ROWS)]
        return float(torch.cat([divergence(predicted(model, batch), batch) for batch in batches]).mean())


def train(model: Any, loss: Any, splits: dict[str, list[Row]], epochs: int, seed: int = 0) -> dict[str, Any]:
    """Divergences on the test split before, and after the epoch that was best on the validation split."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=0.01
    )
    steps = epochs * -(-len(splits["train"]) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps)
    )
    before = held_out(model, splits["test"])
    best, validation = before, [held_out(model, splits["validation"])]
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(splits["train"])).tolist()
        for start in range(0, len(order), BATCH_ROWS):
            rows = [splits["train"][i] for i in order[start : start + BATCH_ROWS]]
            loss(predicted(model, rows), rows).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        now = held_out(model, splits["validation"])
        if now < min(validation):
            best = held_out(model, splits["test"])
        validation.append(now)
        print(f"{loss.__name__}, epoch {epoch + 1}: {now:.3f}", file=sys.stderr, flush=True)
    return {"before": before, "test": best, "validation": validation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    began = time.monotonic()
    splits = {split: read(given.export, split) for split in ("train", "validation", "test")}
    teacher = AutoModelForCausalLM.from_pretrained(
        given.gguf.parent, gguf_file=given.gguf.name, dtype=torch.float32
    )
    found: dict[str, Any] = {}
    for arm, loss in {"soft": divergence, "hard": surprise}.items():
        found[arm] = train(student_of(teacher, given.layers), loss, splits, given.epochs)
    found["tokens"] = {split: sum(len(row.tokens) for row in rows) for split, rows in splits.items()}
    found["seconds"] = round(time.monotonic() - began)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
