"""The main job with nothing faked: HTTP → Celery worker → the real embedded teacher → database → export → datasets."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from datasets import load_dataset

from app.teachers import embedded_model
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

        files = service.export(job["id"], "parquet", tmp_path / "parquet")
        manifest = json.loads((tmp_path / "parquet" / "manifest.json").read_text())
        assert manifest["n_rows"] == 6
        for file in manifest["files"]:
            content = (tmp_path / "parquet" / file["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert manifest["jobs"][0]["teachers"][0]["license"] == "Apache-2.0"
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

        lines = service.export(job["id"], "jsonl", tmp_path / "jsonl")
        data = [str(path) for path in lines if path.suffix == ".jsonl"]
        chats = load_dataset("json", data_files=data, cache_dir=str(tmp_path / "hf"))["train"]
        assert [row["messages"][-1]["content"] for row in chats] == [row["answer"] for row in rows]
        assert len(set(chats["row_id"])) == 6
