"""Gives an export to the trainer's own loader, collator and loss: check.py TRAINER MODEL EXPORT

MODEL is the very model that the teacher was, so its divergence from the exported signal must vanish; the same data with
the signal rolled by one position must not. Prints one line of JSON: what the test looks at.
"""

import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

Found = dict[str, Any]


def parquet(folder: Path) -> Any:
    return load_dataset("parquet", data_files=[str(p) for p in sorted(folder.glob("train-*.parquet"))])[
        "train"
    ]


def jsonl(folder: Path) -> Any:
    return load_dataset("json", data_files=[str(p) for p in sorted(folder.glob("train-*.jsonl"))])["train"]


def rolled(rows: list[list[Any]]) -> list[list[Any]]:
    """The signal one position late."""
    return [rows[-1], *rows[:-1]]


def loaded(model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


def both(loss: Callable[[bool], float]) -> Found:
    with torch.no_grad():
        return {"kl": loss(False), "rolled": loss(True)}


def axolotl_kd(model_dir: Path, folder: Path) -> Found:
    from axolotl.integrations.kd.collator import DataCollatorForKD
    from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss
    from axolotl.integrations.kd.trainer import AxolotlKDTrainer
    from axolotl.utils.data.wrappers import _is_dataset_already_tokenized

    model, tokenizer = loaded(model_dir)
    rows = parquet(folder)
    collator = DataCollatorForKD(tokenizer, padding=True)
    # What its __init__ makes of `kd_alpha: 1, kd_temperature: 1, kd_normalize_topk: true`.
    loss = LigerFusedLinearKLTopKLogprobLoss(0.0, 1.0, 1.0, 0.0, compute_ce_loss=False, normalize_topk=True)
    trainer = types.SimpleNamespace(_kd_loss_fn=loss)

    def run(roll: bool) -> float:
        features = [dict(row) for row in rows]
        if roll:
            for row in features:
                for name in ("target_token_ids", "target_logprobs"):
                    row[name] = rolled(row[name])
                # Rows that had a signal keep their mask, so the same number of positions is compared.
                row["target_logprobs"] = [[max(v, -50.0) for v in place] for place in row["target_logprobs"]]
        return float(AxolotlKDTrainer.compute_loss(trainer, model, collator(features)))

    return {"tokenised": _is_dataset_already_tokenized(rows), **both(run)}


def distillkit(model_dir: Path, folder: Path) -> Found:
    """DistillKit is not on PyPI: its format is decoded here, and its `symmetric_uniform` divergence computed."""
    model, _ = loaded(model_dir)
    lines = (folder / "compression_config.yaml").read_text().splitlines()[1:]
    config = dict(line.split(": ") for line in lines)
    rows = parquet(folder)

    def signal(row: Any) -> tuple[Any, Any]:
        if "top_values" in row:
            return torch.tensor(row["token_ids"]), torch.tensor(row["top_values"])
        bits, k = (int(config["d"]) - 1).bit_length(), int(config["k"])
        packed = np.array(row["bytepacked_indices"], np.uint8)
        stream = np.unpackbits(packed, axis=1)[:, : k * bits].reshape(len(packed), k, bits)
        ids = stream @ (1 << np.arange(bits)[::-1])
        kind = {"float16": np.float16, "float32": np.float32}[config["exact_dtype"]]
        values = np.array(row["compressed_logprobs"], np.uint8).view(kind).astype(np.float32)
        return torch.tensor(ids), torch.tensor(values)

    def run(roll: bool) -> float:
        total, count = 0.0, 0
        for row in rows:
            ids, values = signal(row)
            if roll:
                ids, values = ids.roll(1, 0), values.roll(1, 0)
            student = torch.log_softmax(model(torch.tensor([row["input_ids"]]).long()).logits[0], -1).gather(
                1, ids
            )
            mask = torch.tensor(row["labels"]) >= 0
            inner = (values.exp() * (values - student)).sum(1)
            rest_t = torch.log1p(-values.exp().sum(1).clamp(1e-8, 1 - 1e-8))
            rest_s = torch.log1p(-student.exp().sum(1).clamp(1e-8, 1 - 1e-8))
            # Multiplied, as DistillKit does: one NaN under the mask would spoil the whole sum.
            total += float(((inner + rest_t.exp() * (rest_t - rest_s)) * mask).sum())
            count += int(mask.sum())
        return total / count

    return both(run)


def tinker(model_dir: Path, folder: Path) -> Found:
    sys.path.insert(0, str(folder))
    from load import datums

    model, _ = loaded(model_dir)
    found = list(datums(folder))

    def run(roll: bool) -> float:
        total, count = 0.0, 0
        for datum in found:
            targets = datum.loss_fn_inputs["target_tokens"].to_torch()
            weights = datum.loss_fn_inputs["weights"].to_torch()
            if roll:
                targets, weights = targets.roll(1, 0), weights.roll(1, 0)
            tokens = torch.tensor([datum.model_input.to_ints()])
            logits = model(tokens).logits[0].gather(1, targets)
            student = torch.log_softmax(logits, -1)  # the weights are renormalised over the candidates
            taught = weights.sum(1) > 0
            entropy = torch.where(weights > 0, weights * weights.clamp_min(1e-30).log(), 0.0).sum(1)
            total += float((entropy - (weights * student).sum(1))[taught].sum())
            count += int(taught.sum())
        return total / count

    return {"datums": len(found), "type": type(found[0]).__module__.split(".")[0], **both(run)}


def slime(model_dir: Path, folder: Path) -> Found:
    model, _ = loaded(model_dir)
    metadata, *rows = [json.loads(line) for line in (folder / "train-00000.jsonl").read_text().splitlines()]

    def run(roll: bool) -> float:
        total, count = 0.0, 0
        for row in rows:
            n = row["response_length"]
            logits = torch.log_softmax(model(torch.tensor([row["tokens"]])).logits[0], -1)[-n - 1 : -1]
            ids = torch.tensor(row["teacher_top_k_ids"])
            values = torch.tensor(row["teacher_top_k_logprobs"])
            if roll:
                ids, values = ids.roll(1, 0), values.roll(1, 0)
            total += float((values.exp() * (values - logits.gather(1, ids))).sum())
            count += n
        return total / count

    return {"top_k": metadata["top_k"], **both(run)}


def trl_rollouts(model_dir: Path, folder: Path) -> Found:
    from collections import defaultdict

    from accelerate import Accelerator
    from trl.experimental.async_distillation.async_distillation_trainer import (
        AsyncDistillationTrainer,
        DataCollatorForRollout,
        RolloutQueueDataset,
    )

    sys.path.insert(0, str(folder))
    from load import OfflineRollouts, samples

    model, _ = loaded(model_dir)
    n = sum(1 for _ in samples(folder))
    worker = OfflineRollouts(folder)
    worker.start()
    data = RolloutQueueDataset(worker.rollout_queue, lambda: 0, worker.check_health, 60.0, defaultdict(list))
    stream = iter(data)
    examples = [next(stream) for _ in range(n)]
    worker.stop()
    collator = DataCollatorForRollout(pad_token_id=0)

    def run(roll: bool) -> float:
        given = [dict(example) for example in examples]
        if roll:
            for example in given:
                for name in ("teacher_topk_ids", "teacher_topk_logprobs"):
                    signal = example[name].copy()
                    first = int(np.argmax(example["completion_mask"]))
                    signal[first:] = np.roll(signal[first:], 1, axis=0)
                    example[name] = signal
        trainer = types.SimpleNamespace(
            accelerator=Accelerator(cpu=True),
            args=types.SimpleNamespace(beta=0.0, teacher_temperature=1.0, add_tail_bucket=True),
            current_gradient_accumulation_steps=1,
            _teacher_ids=["t"],
            _metrics={"train": defaultdict(list)},
            _step_forward_tokens=0.0,
            _step_trained_tokens=0.0,
            _step_seq_len_weighted=0.0,
            _step_samples=0.0,
            _step_forward_s=0.0,
        )
        return float(AsyncDistillationTrainer._compute_loss(trainer, model, collator([[given]])))

    return {"samples": n, **both(run)}


def trl_sft(model_dir: Path, folder: Path) -> Found:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loaded(model_dir)
    tokens = bool(list(folder.glob("train-*.parquet")))
    rows = parquet(folder) if tokens else jsonl(folder)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        per_device_train_batch_size=4,
        report_to=[],
        max_length=None,
        completion_only_loss=None,
    )
    trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
    total, batches, masked, taught, text = 0.0, 0, 0, 0, ""
    for batch in trainer.get_train_dataloader():
        with torch.no_grad():
            total += float(trainer.compute_loss(model, dict(batch)))
        batches += 1
        labels = batch["labels"]
        masked += (
            int(((labels == -100) & (batch["attention_mask"] == 1)).sum()) if "attention_mask" in batch else 0
        )
        taught += int((labels != -100).sum())
        text += " ".join(tokenizer.batch_decode(batch["input_ids"]))
    return {"loss": total / batches, "taught": taught, "masked": masked, "text": text[:20_000]}


def llama_factory(model_dir: Path, folder: Path) -> Found:
    # It imports torchaudio on the way, which has no build for the processor's torch; nothing of it is used.
    audio = types.ModuleType("torchaudio")
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = audio
    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import get_dataset_list

    attributes = get_dataset_list(["retort_train"], str(folder))[0]
    rows = load_dataset("json", data_files=str(folder / attributes.dataset_name))["train"]
    converter = SharegptDatasetConverter(
        dataset_attr=attributes, data_args=types.SimpleNamespace(media_dir="")
    )
    made = [converter(row) for row in rows]
    return {
        "rows": len(made),
        "whole": sum(bool(row["_prompt"] and row["_response"]) for row in made),
        "answers": [row["_response"][0]["content"] for row in made],
    }


def ms_swift(model_dir: Path, folder: Path) -> Found:
    from swift.dataset.preprocessor.core import AutoPreprocessor

    made = AutoPreprocessor()(jsonl(folder), load_from_cache_file=False)
    return {"rows": len(made), "answers": [row["messages"][-1]["content"] for row in made]}


def verl(model_dir: Path, folder: Path) -> Found:
    from omegaconf import OmegaConf
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    _, tokenizer = loaded(model_dir)
    files = [str(path) for path in sorted(folder.glob("train-*.parquet"))]
    config = OmegaConf.create({"max_length": 256, "truncation": "error", "ignore_input_ids_mismatch": True})
    rows = MultiTurnSFTDataset(files, tokenizer, config)
    answers = []
    for i in range(len(rows)):
        item = rows[i]
        answers.append(tokenizer.decode(item["input_ids"][item["loss_mask"].bool()]))
    return {"rows": len(rows), "answers": answers}


def mlcroissant(model_dir: Path, folder: Path) -> Found:
    """Loads `croissant.json` and iterates every record: checksums are looked at when records are read."""
    import jsonpath_ng

    # It asks for jsonpath-rw, of which there is no wheel; this is its fork.
    sys.modules["jsonpath_rw"] = jsonpath_ng
    sys.modules["jsonpath_rw.lexer"] = jsonpath_ng.lexer
    import mlcroissant

    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    counts, first = {}, {}
    for records in dataset.metadata.record_sets:
        rows = list(dataset.records(records.id))
        counts[records.id] = len(rows)
        first = first or {name.partition("/")[2]: str(value) for name, value in rows[0].items()}
    told = dataset.metadata.to_json()
    kept = {name: told.get(name) for name in ("rai:hasSyntheticData", "prov:wasGeneratedBy", "name")}
    return {
        "counts": counts,
        "first": first,
        "errors": list(dataset.metadata.ctx.issues.errors),
        "told": kept,
    }


CHECKS = {
    "mlcroissant": mlcroissant,
    "axolotl-kd": axolotl_kd,
    "distillkit": distillkit,
    "tinker": tinker,
    "slime": slime,
    "trl-rollouts": trl_rollouts,
    "trl-sft": trl_sft,
    "llama-factory": llama_factory,
    "ms-swift": ms_swift,
    "verl": verl,
}

if __name__ == "__main__":
    name, model_dir, folder = sys.argv[1:]
    print("\n" + json.dumps(CHECKS[name](Path(model_dir), Path(folder))))
