"""submit, watch, export, and the rest that steers a job."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.faults.world import ScriptedServer
from tests.fixtures.service import Service
from tests.integration.cli.conftest import Retort

GOOD = '{"prompt": "What is 2 + 2?", "license": "CC0-1.0"}\n"Name a prime."\n'
BAD = '{"prompt": ""}\n{"prompt": "x", "licence": "MIT"}\nnot json\n'


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file with two prompts, different in each test."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(GOOD + json.dumps(f"Only here: {tmp_path}") + "\n")
    return file


@pytest.mark.smoke
def test_submit_watch_export(retort: Retort, prompts: Path, tmp_path: Path) -> None:
    sent = retort("submit", prompts, "--teacher", "t", "--top-logprobs", 3, "--max-tokens", 4)
    assert sent.code == 0
    job = sent.out.strip()
    assert job.startswith("job_"), "a script gets the job's id on standard output and nothing else"
    assert "3 prompts" in sent.err
    assert "2 prompts without a licence" in sent.err
    watched = retort("watch", job)
    assert watched.code == 0
    assert "completed: 3/3, 0 failed, 12 tokens" in watched.err
    assert retort("watch", job, "--json").json["counts"]["completed"] == 3

    to = tmp_path / "data set"
    made = retort("export", job, "--to", to, "--format", "parquet", "--json")
    assert (made.code, made.json["n_rows"], made.json["status"]) == (0, 3, "completed")
    assert {file.name for file in to.iterdir()} >= {"train-00000.parquet", "manifest.json"}
    assert "3 rows in" in retort("export", job, "--to", tmp_path / "lines").out
    rows = [json.loads(line) for line in (tmp_path / "lines" / "train-00000.jsonl").read_text().splitlines()]
    assert len(rows) == 3


def test_what_was_fetched_stays_and_what_is_damaged_is_fetched_again(
    retort: Retort, prompts: Path, tmp_path: Path
) -> None:
    job = retort("submit", prompts, "--teacher", "t", "--watch", "--json").json["id"]
    to = tmp_path / "out"
    assert retort("export", job, "--to", to).code == 0
    data, manifest = to / "train-00000.jsonl", to / "manifest.json"
    content, inode = data.read_bytes(), data.stat().st_ino
    manifest.write_text("{}")
    assert retort("export", job, "--to", to).code == 0
    assert data.stat().st_ino == inode, "a file that is whole was fetched again"
    assert json.loads(manifest.read_text())["n_rows"] == 3
    data.unlink()
    (to / "train-00000.jsonl.part").write_bytes(content[:10])
    assert retort("export", job, "--to", to).code == 0
    assert data.read_bytes() == content


def test_rows_that_do_not_parse_are_told_and_the_rest_goes_in(retort: Retort, prompts: Path) -> None:
    prompts.write_text(prompts.read_text() + BAD)
    sent = retort("submit", prompts, "--teacher", "t", "--json")
    assert sent.code == 1
    assert sent.json["counts"]["expected"] == 3
    assert "line 4: prompt: String should have at least 1 character" in sent.err
    assert "line 5: licence: unknown field" in sent.err
    assert "line 6: not JSON" in sent.err
    errors = retort("prompt-sets", "errors", sent.json["prompt_set"], "--json").json
    assert [row["line"] for row in errors] == [4, 5, 6]
    assert "not json" in retort("prompt-sets", "errors", sent.json["prompt_set"]).out


def test_a_job_names_the_teacher_that_it_waits_for_once(retort: Retort, prompts: Path) -> None:
    words = ("--driver", "openai", "--model", "scripted", "--license", "Apache-2.0")
    assert retort("teachers", "add", "gone", *words, "--base-url", "http://127.0.0.1:9/v1").code == 1
    job = retort("submit", prompts, "--teacher", "gone").out.strip()
    end = time.monotonic() + 60
    while (found := retort("jobs", "show", job, "--json").json)["status"] != "parked":
        assert time.monotonic() < end, found
    assert found["waits_for"].startswith("teacher 'gone': the teacher cannot be reached (")
    assert retort("jobs", "cancel", job).code == 0


def test_strict_takes_all_or_nothing(retort: Retort, prompts: Path) -> None:
    prompts.write_text(GOOD + BAD)
    sent = retort("submit", prompts, "--teacher", "t", "--strict", "--json")
    assert (sent.code, sent.out) == (4, "")
    assert "3 of 5 rows" in sent.problem["detail"]
    told = retort("submit", prompts, "--teacher", "t", "--strict").err
    assert "line 3: prompt: String should have at least 1 character" in told
    assert "line 5: not JSON" in told
    prompts.write_text(GOOD + '"Mended."\n')
    assert retort("submit", prompts, "--teacher", "t", "--strict").code == 0


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        ("", 4, "no row of"),
        ("\n\n", 4, "no row of"),
        (BAD, 4, "no row of"),
        ("\0\n", 4, "not JSON"),
        ("[" * 100_000 + "\n", 4, "not JSON"),
        ("\ufeff" + '"With a byte order mark."\n', 0, "1 prompt"),
        ('"\\u0000 and \\ud83d\\ude00"\r\n', 0, "1 prompt"),
    ],
)
def test_odd_files(retort: Retort, prompts: Path, content: str, code: int, told: str) -> None:
    prompts.write_text(content)
    sent = retort("submit", prompts, "--teacher", "t")
    assert (sent.code, told in sent.err) == (code, True), sent.err


def test_gzip_and_what_only_says_so(retort: Retort, prompts: Path, tmp_path: Path) -> None:
    whole, cut, none = (tmp_path / f"{name}.jsonl.gz" for name in ("whole", "cut", "none"))
    packed = gzip.compress(prompts.read_bytes() * 50)
    whole.write_bytes(packed)
    cut.write_bytes(packed[: len(packed) // 2])
    none.write_bytes(prompts.read_bytes())
    assert retort("submit", whole, "--teacher", "t", "--json").json["counts"]["expected"] == 150
    for file in (cut, none):
        sent = retort("submit", file, "--teacher", "t")
        assert (sent.code, "is not whole gzip" in sent.err) == (2, True)


def test_a_pipe_and_standard_input(service: Service, retort: Retort, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(f'"Through a pipe {tmp_path}."\n'))
    writer.start()
    sent = retort("submit", pipe, "--teacher", "t", "--json")
    writer.join()
    assert (sent.code, sent.json["name"]) == (0, "pipe")
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "submit", "-", "--teacher", "t", "--json"],
        input=f'"Through standard input {tmp_path}."\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["name"] == "stdin"


def test_the_same_file_is_stored_once_and_every_submit_is_a_job(retort: Retort, prompts: Path) -> None:
    first, second = (retort("submit", prompts, "--teacher", "t", "--json").json for _ in range(2))
    assert first["prompt_set"] == second["prompt_set"]
    assert first["id"] != second["id"]
    third = retort("submit", "--prompt-set", first["prompt_set"], "--teacher", "t", "--n", 2, "--json").json
    assert (third["prompt_set"], third["counts"]["expected"]) == (first["prompt_set"], 6)
    assert retort("prompt-sets", "show", first["prompt_set"], "--json").json["n_prompts"] == 3


def test_a_name_with_anything_in_it(retort: Retort, prompts: Path) -> None:
    odd = prompts.with_name("a\nb\udcff" + "c" * 100 + ".jsonl")
    prompts.rename(odd)
    sent = retort("submit", odd, "--teacher", "t", "--json")
    assert (sent.code, sent.json["name"][:4]) == (0, "a b?")


def test_a_dry_run_makes_no_job(retort: Retort, prompts: Path) -> None:
    found = retort("submit", prompts, "--teacher", "t", "--n", 4, "--max-tokens", 10, "--dry-run")
    assert found.code == 0
    assert "3 prompts → up to 12 completions." in found.out
    assert "At most 120 completion tokens." in found.out
    assert "name no licence" in found.out
    told = retort("submit", prompts, "--teacher", "t", "--dry-run", "--json").json
    assert told["teachers"] == [{"name": "t", "n_completions": 3}]
    (stored,) = [one for one in retort("prompt-sets", "list", "--json").json if f" {one['id']}:" in found.err]
    assert [job for job in retort("jobs", "list", "--json").json if job["prompt_set"] == stored["id"]] == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "give a FILE of prompts"),
        (("prompts.jsonl", "--prompt-set", "ps_1"), 2, "give a FILE of prompts"),
        (("nowhere.jsonl",), 2, "there is no file nowhere.jsonl"),
        ((".",), 2, ". is a folder"),
        (("prompts.jsonl", "--n", "0"), 2, "--n"),
        (("prompts.jsonl", "--temperature", "3"), 2, "--temperature"),
        (("prompts.jsonl", "--top-p", "0"), 2, "top_p"),
        (("prompts.jsonl", "--priority", "9999"), 2, "priority"),
        (("prompts.jsonl", "--teacher", "t"), 2, "named once"),
        (("prompts.jsonl", "--top-logprobs", "21"), 4, "gives at most 19 top logprobs"),
        (("--prompt-set", "ps_none"), 5, "there is no prompt set 'ps_none'"),
        (("prompts.jsonl", "--teacher", "nobody"), 5, "there is no teacher 'nobody' (there are: "),
    ],
)
def test_what_cannot_be_submitted(
    retort: Retort, prompts: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    retort("teachers", "probe", "t")
    sent = retort("submit", *words, "--teacher", "t")
    assert (sent.code, told in sent.err) == (code, True), sent.err
    assert "Traceback" not in sent.err


def test_a_job_with_failures_ends_with_1_and_is_retried(
    retort: Retort, prompts: Path, teacher: ScriptedServer
) -> None:
    prompts.write_text('"Fine."\n"Poison."\n')
    teacher.change(faults=[{"kind": "400", "contains": "Poison"}])
    sent = retort("submit", prompts, "--teacher", "t", "--watch")
    assert sent.code == 1
    assert "completed: 2/2, 1 failed" in sent.err
    job = retort("jobs", "list", "--most", 1, "--json").json[0]["id"]
    assert f"retort jobs failures {job}" in sent.err
    assert retort("watch", job).code == 1
    failures = retort("jobs", "failures", job)
    assert "teacher-permanent" in failures.out
    assert retort("jobs", "failures", job, "--json").json[0]["prompt_number"] == 1
    teacher.change(faults=[])
    assert "0 completions to make again" in retort("jobs", "retry", job, "--kind", "no-such-kind").out
    assert "1 completion to make again" in retort("jobs", "retry", job).out
    assert retort("watch", job).code == 0


def test_jobs_are_listed_shown_and_steered(retort: Retort, prompts: Path, teacher: ScriptedServer) -> None:
    teacher.change(faults=[{"kind": "hang", "seconds": 60}])
    job = retort("submit", prompts, "--teacher", "t").out.strip()
    assert f"{job} is paused." in retort("jobs", "pause", job).out
    assert job in retort("jobs", "list", "--status", "paused").out
    assert f"{job} is r" in retort("jobs", "resume", job).out
    shown = retort("jobs", "show", job)
    assert "0 of 3 completed" in shown.out
    assert "teacher t (scripted)" in shown.out
    assert f"{job} is cancelled." in retort("jobs", "cancel", job).out
    assert retort("watch", job).code == 1
    again = retort("jobs", "pause", job, "--json")
    assert (again.code, again.problem["error"]) == (4, "illegal-transition")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("{job}",), 2, "--to"),
        (("job_none", "--to", "out"), 5, "there is no job 'job_none'"),
        (("{job}", "--to", "out", "--format", "floppy"), 4, "there is no format 'floppy'"),
        (("{job}", "--to", "a-file"), 2, "is a file"),
        (("job_none", "--to", "a-file/out"), 1, "a-file/out: Not a directory"),
        (("{job}", "--to", "out", "--rows-per-file", "0"), 2, "--rows-per-file"),
    ],
)
def test_what_cannot_be_exported(
    retort: Retort, service: Service, words: tuple[str, ...], code: int, told: str
) -> None:
    Path("a-file").touch()
    jobs = service.call("GET", "/v1/jobs?status=completed")["items"]
    job = jobs[0]["id"] if jobs else service.submit("t", b'"one"\n')["id"]
    done = retort("export", *(word.format(job=job) for word in words))
    assert (done.code, told in done.err) == (code, True), done.err


def test_no_command_prints_a_traceback_for_a_wrong_id(retort: Retort) -> None:
    for words in (
        ("watch", "job_x"),
        ("jobs", "show", "a/b?c#d"),
        ("jobs", "cancel", "\n"),
        ("jobs", "failures", "job_x"),
        ("prompt-sets", "show", "../teachers"),
        ("prompt-sets", "errors", "é" * 30),
        ("teachers", "probe", ".."),
        ("keys", "revoke", "key_x"),
        ("jobs", "show", ""),
        ("jobs", "show", "\udcff"),
    ):
        done = retort(*words)
        assert done.code in (4, 5), (words, done)
        assert done.err.startswith("error: "), (words, done.err)
