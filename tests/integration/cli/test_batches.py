"""A job through a provider's batch API from the command line: registered, submitted, watched, looked at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.batch_apis import BatchStore, openai_batch_api
from tests.fixtures.loopback import serving
from tests.integration.batches.batching import until
from tests.integration.cli.conftest import Retort


@pytest.fixture
def provider() -> Iterator[tuple[BatchStore, str]]:
    store = BatchStore()
    with serving(lambda: openai_batch_api(store)) as url:
        yield store, f"{url}/v1"


def test_a_job_by_batch(retort: Retort, provider: tuple[BatchStore, str], tmp_path: Path) -> None:
    store, url = provider
    what = ("--driver", "openai", "--model", "scripted", "--license", "Apache-2.0")
    added = retort("teachers", "add", "by-batch", *what, "--base-url", url)
    assert added.code == 0, added.err
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "Only here: {tmp_path}", "license": "CC0-1.0"}}\n"Name a prime."\n')
    sent = retort("submit", file, "--teacher", "by-batch", "--batch", "--max-tokens", 4, "--watch", "--json")
    assert sent.code == 0, sent.err
    assert (sent.json["status"], sent.json["counts"]["completed"]) == ("completed", 2)
    until(lambda: not store.files)  # nothing of the prompts stays at the provider
    (batch,) = retort("jobs", "batches", sent.json["id"], "--json").json
    assert (batch["status"], batch["n_completed"], batch["provider_id"]) == ("collected", 2, "batch_0001")
    assert "batch_0001" in retort("jobs", "batches", sent.json["id"]).out


def test_a_teacher_without_a_batch_api(retort: Retort, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"Name a prime."\n')
    refused = retort("submit", file, "--teacher", "t", "--batch")
    assert refused.code != 0
    assert "the provider `vllm` has no batch API" in refused.err
