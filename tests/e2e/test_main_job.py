"""The main job with nothing faked: HTTP → Celery worker → the real embedded teacher → database → export → datasets."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from app.teachers import embedded_model
from app.teachers.gguf_metadata import read_metadata
from tests.fixtures.service import running_service

PROMPTS = "\n".join(
    json.dumps(row)
    for row in (
        {"prompt": "What is 7 plus 5?", "license": "cc0-1.0", "source": "ours", "reference": "12"},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Name a colour."},
            ],
            "license": "CC-BY-4.0",
        },
        {
            "prompt": "Say hello.",
            "parameters": {"max_tokens": 3},
            "license": "CC0-1.0",
            "metadata": {"a": [1]},
        },
        {"prompt": "", "license": "CC0-1.0"},
        {"prompt": "Bad licence.", "license": "GPL-17"},
    )
).encode()


@pytest.mark.smoke
def test_main_job(database_url: str, broker_url: str, tmp_path: Path) -> None:
    embedded_model.fetch()
    with running_service(database_url, broker_url, tmp_path / "data") as service:
        teacher = {
            "name": "small",
            "driver": "embedded",
            "model": embedded_model.MODEL,
            "revision": embedded_model.REVISION,
            "license": embedded_model.LICENSE,
        }
        service.call("POST", "/v1/teachers", json=teacher)
        job = service.submit(
            "small",
            PROMPTS,
            n=2,
            top_logprobs=5,
            sampling={"temperature": 0.8, "max_tokens": 12, "seed": 3},
            elicit={"max_reasoning_tokens": 8},
        )
        errors = service.call("GET", f"/v1/prompt-sets/{job['prompt_set']}/errors")["items"]
        assert [(row["line"], row["kind"]) for row in errors] == [(4, "invalid-row"), (5, "invalid-license")]
        job = service.wait(f"/v1/jobs/{job['id']}", 240)
        assert job["status"] == "completed", service.logs()
        assert (job["counts"]["completed"], job["counts"]["failed"]) == (6, 0)
        assert job["teachers"][0]["revision"] == embedded_model.REVISION
        check_stored(
            service.call("GET", f"/v1/jobs/{job['id']}/completions?include=tokens&include=prompt")["items"]
        )
        files = service.export(job["id"], "parquet", tmp_path / "parquet")
        rows = check_parquet(files, tmp_path)
        check_jsonl(service.export(job["id"], "jsonl", tmp_path / "jsonl"), rows, tmp_path)


def check_stored(rows: list[dict[str, Any]]) -> None:
    """Everything that is to be kept of a completion, as it is read over REST."""
    vocabulary = read_metadata(embedded_model.model_path()).tokens
    assert [(row["prompt_number"], row["sample_index"]) for row in rows] == [
        (p, i) for p in range(3) for i in (0, 1)
    ]
    for row in rows:
        tokens = row["tokens"]
        count, k = len(tokens["token_ids"]), tokens["k"]
        assert (row["status"], row["teacher_name"], row["finish_reason"] in ("stop", "length")) == (
            "completed",
            "small",
            True,
        )
        assert row["reasoning_source"] == "elicited"
        assert isinstance(row["reasoning_truncated"], bool)
        assert (row["n_tokens"], k) == (count, 5)
        assert 0 < row["completion_tokens"] <= 12
        assert row["prompt_tokens"] >= len(tokens["prompt_ids"]) > 10
        assert row["calls"] in (1, 2)
        assert (row["attempts"], row["error_kind"], row["latency_ms"] > 0) == (1, None, True)
        assert row["engine"].startswith("llama.cpp ")
        assert row["teacher_license"] == "Apache-2.0"
        for name in ("request_hash", "response_hash", "content_hash"):
            assert re.fullmatch("[0-9a-f]{64}", row[name])
        for name in (
            "sampled_logprob",
            "sampled_rank",
            "tail_logmass",
            "sampled",
            "topk_ids",
            "topk_logprobs",
        ):
            assert len(tokens[name]) == count, name
        assert all(
            len(ids) == len(lps) == k
            for ids, lps in zip(tokens["topk_ids"], tokens["topk_logprobs"], strict=True)
        )
        text = b"".join(vocabulary[i] for i in tokens["token_ids"]).decode("utf-8", "replace")
        assert text.startswith("<think>\n")
        assert row["reasoning"] in text
        assert row["answer"].strip() in text
        put_there = sum(not drawn for drawn in tokens["sampled"])
        assert count - put_there <= row["completion_tokens"]
    assert [row["prompt_license"] for row in rows[::2]] == ["CC0-1.0", "CC-BY-4.0", "CC0-1.0"]
    assert [turn["role"] for turn in rows[2]["messages"]] == ["system", "user"]
    own = [row["sampling"] for row in rows]
    assert [one if one is None else one["max_tokens"] for one in own] == [None, None, None, None, 3, 3]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["request_hash"] != second["request_hash"], "siblings are asked with seeds of their own"
    assert len({row["content_hash"] for row in rows}) == 6


def check_parquet(files: list[Path], tmp_path: Path) -> Any:
    manifest = json.loads((tmp_path / "parquet" / "manifest.json").read_text())
    assert manifest["n_rows"] == 6
    assert manifest["code_version"]
    for file in manifest["files"]:
        content = (tmp_path / "parquet" / file["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    (of_teacher,) = manifest["jobs"][0]["teachers"]
    assert of_teacher["license"] == "Apache-2.0"
    assert of_teacher["revision"] == embedded_model.REVISION
    data = [str(path) for path in files if path.suffix == ".parquet"]
    rows = load_dataset("parquet", data_files=data, cache_dir=str(tmp_path / "hf"))["train"]
    assert len(rows) == 6
    for row in rows:
        count, k = row["lp_count"], row["lp_k"]
        assert k == 5
        assert 0 < count <= 8 + 12 + 8
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == count * k
        assert len(row["input_ids"]) == row["lp_first"] + count == len(row["loss_mask"])
        assert row["reasoning_source"] == "elicited"
        drawn = [lp for lp in row["sampled_logprob"] if not math.isnan(lp)]
        assert drawn
        assert all(lp <= 0 for lp in drawn)
        for i, rank in enumerate(row["sampled_rank"]):
            if rank > 0:
                assert row["topk_ids"][i * k + rank - 1] == row["input_ids"][row["lp_first"] + i]
    assert {row["prompt_license"] for row in rows} == {"CC0-1.0", "CC-BY-4.0"}
    assert rows[0]["completion_tokens"] > 0
    short = [row for row in rows if row["prompt"] == "Say hello."]
    assert all(json.loads(row["sampling_json"])["max_tokens"] == 3 for row in short)
    return rows


def check_jsonl(files: list[Path], rows: Any, tmp_path: Path) -> None:
    data = [str(path) for path in files if path.suffix == ".jsonl"]
    chats = load_dataset("json", data_files=data, cache_dir=str(tmp_path / "hf"))["train"]
    assert [row["messages"][-1]["content"] for row in chats] == [row["answer"] for row in rows]
    assert len(set(chats["row_id"])) == 6
