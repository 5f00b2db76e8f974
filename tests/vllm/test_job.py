"""A job on a real vLLM teacher, from REST to the exported file."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.fixtures.service import running_service
from tests.fixtures.vllm_cpu import KEY, SERVED, VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPTS: list[dict[str, Any]] = [
    {"prompt": f"Name {count} colours.", "license": "CC0-1.0"} for count in ("two", "three")
]
PROMPTS += [
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}],
        "license": "CC0-1.0",
    }
]


def test_a_job_on_vllm_ends_in_a_dataset(
    vllm_server: VllmServer, sqlite_url: str, broker_url: str, tmp_path: Path
) -> None:
    settings = {"TEACHER_KEY": KEY, "RETORT_ENGINE__DEADLINE_SECONDS": "300"}
    with running_service(sqlite_url, broker_url, tmp_path / "data", settings=settings) as service:
        teacher = {
            "name": "served",
            "driver": "vllm",
            "model": SERVED,
            "base_url": vllm_server.url,
            "secret_ref": "env:TEACHER_KEY",
            "license": "Apache-2.0",
        }
        service.call("POST", "/v1/teachers", json=teacher)
        probed = service.call("POST", "/v1/teachers/served/probe", timeout=200)
        assert probed["capabilities"]["compact_route"], probed
        assert KEY not in json.dumps(probed)
        prompts = "\n".join(json.dumps(row) for row in PROMPTS).encode()
        sampling = {"temperature": 1.0, "max_tokens": 8, "seed": 1}
        job = service.submit("served", prompts, n=2, top_logprobs=20, sampling=sampling)
        job = service.wait(f"/v1/jobs/{job['id']}", 300)
        assert job["status"] == "completed", service.logs()
        assert (job["counts"]["completed"], job["counts"]["failed"]) == (6, 0)
        files = service.export(job["id"], "parquet", tmp_path / "parquet")
        assert KEY not in service.logs()
    data = [str(path) for path in files if path.suffix == ".parquet"]
    rows = load_dataset("parquet", data_files=data, cache_dir=str(tmp_path / "hf"))["train"]
    assert len(rows) == 6
    for row in rows:
        count, k = row["lp_count"], row["lp_k"]
        assert (k, 0 < count <= 8) == (20, True)
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == count * k
        assert min(row["topk_ids"]) >= 0
        assert all(logprob <= 0 for logprob in row["topk_logprobs"])
        assert row["lp_first"] > 20  # the prompt's ids are there
