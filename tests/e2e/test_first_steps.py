"""The first steps of the README, word by word, in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from app.teachers import embedded_model
from tests.fixtures import processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BIN = 'export PATH="$PWD/.venv/bin:$PATH"'


def test_they_work_as_they_stand(tmp_path: Path) -> None:
    embedded_model.fetch()
    subprocess.run([ROOT / "tests" / "environments" / "debian.sh", "curl"], check=True)
    port = str(processes.free_port())
    section = (ROOT / "README.md").read_text().partition("## First steps")[2].partition("\n## ")[0]
    start, over_rest, end = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert BIN in start
    bin_here = f'export PATH="{Path(sys.executable).parent}:$PATH"'
    environment = {**os.environ, "RETORT_PORT": port}

    def run(*blocks: str, stop_at_errors: bool = True) -> str:
        script = "\n".join(blocks).replace(BIN, bin_here).replace("8321", port)
        flags = "-euo" if stop_at_errors else "-uo"
        done = subprocess.run(
            ["bash", flags, "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    try:
        shown = run(start)
        assert "completed: 2/2, 0 failed" in shown
        assert "prompts" in shown, "the job's name in the list"
        shown = run(bin_here, over_rest)
        assert "event: ended" in shown
        assert '"topk_logprobs":[[' in shown
        assert "1 row in dataset" in shown
        (file,) = (tmp_path / "dataset").glob("*.parquet")
        rows = load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path / "hf"))["train"]
        assert len(rows) == 1
    finally:
        shown = run(bin_here, end, stop_at_errors=False)
    assert "cannot be reached" in shown, "there is no vLLM server here"
    assert shown.rstrip().endswith("Stopped.")
