"""The benchmark works: at sizes that measure nothing, and never against the clock."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.teachers.scripted import Script
from tests.bench.agreement import compare
from tests.bench.contenders import CONTENDERS, LIMIT
from tests.bench.measures import MEASURES
from tests.bench.measures.slots import best_share
from tests.bench.null_teacher import ROOT
from tests.bench.plot import plot
from tests.bench.process_tree import Meter, cpu_seconds
from tests.bench.readings import Reading, Readings
from tests.bench.report import Run, goals_of, markdown

_BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_runs_and_is_reported(tmp_path: Path) -> None:
    """Some ten seconds of CPU: a real service, once."""
    for name, *chosen in (
        ("bare", "answers", "slots", "routes", "--contender", "aiohttp"),
        ("life", "life", "--contender", "retort"),
    ):
        made = bench("run", *chosen, "--smoke", "--repeats", "1", "--out", str(tmp_path), "--name", name)
        assert made.returncode == 0, made.stderr[-3000:]
    bare, life = Run.load(tmp_path / "bare.json").readings, Run.load(tmp_path / "life.json").readings
    assert bare.measures() == ["answers", "slots", "routes"]
    assert {r.contender for r in bare.all} == {"aiohttp", "chat", "completions", "compact"}
    calls = bare.spread("answers", "64 tokens, k = 20", "aiohttp", "calls_per_row")
    assert calls is not None
    assert calls.median == 1
    assert all("retort" in life.contenders("life", case) for case in life.cases("life"))
    assert all(r.value >= 0 for r in (*bare.all, *life.all))
    assert ElementTree.parse(tmp_path / "bare.svg").getroot().tag.endswith("svg")
    assert "Retort embedded" in (tmp_path / "life.md").read_text()
    assert "Retort embedded" in bench("show", str(tmp_path / "life.json")).stdout
    assert bench("compare", str(tmp_path / "bare.json"), str(tmp_path / "bare.json")).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_measure_runs_with_every_contender(tmp_path: Path) -> None:
    """Builds the peers' environments, so it takes minutes the first time."""
    made = bench("run", "--smoke", "--repeats", "1", "--out", str(tmp_path), "--name", "run")
    assert made.returncode == 0, made.stderr[-3000:]
    run = Run.load(tmp_path / "run.json")
    assert run.left_out == {}
    assert run.readings.measures() == list(MEASURES)
    answering = [name for name, contender in CONTENDERS.items() if contender.reads_answers_only]
    assert run.readings.contenders("answers", "64 tokens, k = 20") == answering


def test_an_unknown_name_is_refused_and_the_known_ones_are_told() -> None:
    refused = bench("run", "nonsense")
    assert refused.returncode == 2
    assert all(name in refused.stderr for name in MEASURES)


def test_the_cpu_of_children_counts_also_when_they_have_ended() -> None:
    child = _BURN.format(seconds=0.3)
    script = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
        f"print('done', flush=True)\n{_BURN.format(seconds=0.2)}print('done', flush=True)\nsys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with Meter({"client": [process.pid]}) as meter:
            process.stdout.readline()
            process.stdout.readline()
        process.stdin.close()
    assert 0.45 <= meter.used.cpu["client"] <= 2
    assert meter.used.peak_total > 1_000_000
    assert cpu_seconds([process.pid]) == 0  # gone


def test_the_best_possible_share_of_slots() -> None:
    one_length = Script(tokens=10, slots=4, delay_per_token=0.01)
    assert best_share(one_length, 8) == pytest.approx(1)
    assert best_share(one_length, 9) == pytest.approx(9 / 12)
    assert 0.9 < best_share(Script(tokens=256, shortest=16, slots=4, delay_per_token=0.01), 1000) < 1


def readings(contender: str, *values: float) -> list[Reading]:
    case = "64 tokens, no logprobs"
    return [Reading("answers", case, contender, "cpu_us_per_row", i, v) for i, v in enumerate(values)]


def run_of(*found: list[Reading]) -> Run:
    return Run({"sizes": "normal"}, Readings(reading for part in found for reading in part))


def test_ratios_are_taken_repeat_by_repeat() -> None:
    """The machine was slow in the second repeat, for both."""
    run = run_of(readings(LIMIT, 100, 300, 100), readings("retort", 200, 600, 220))
    ratio = run.readings.ratio("answers", "64 tokens, no logprobs", "retort", "cpu_us_per_row", LIMIT)
    assert ratio is not None
    assert ratio.median == ratio.low == 2
    assert ratio.high == pytest.approx(2.2)
    assert [verdict for *_, verdict in goals_of(run)] == ["held"]
    assert "| Retort embedded | 220 (200–600) | 2.00 (2.00–2.20) |" in markdown(run)


def test_a_reading_of_nothing_is_drawn() -> None:
    """Less CPU than a hundredth of a second, on an axis that is logarithmic."""
    drawn = plot(run_of(readings(LIMIT, 0, 1, 2), readings("retort", 100, 100, 100)))
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_runs_that_differ_are_told_by_how_much() -> None:
    first = run_of(readings(LIMIT, 100, 100), readings("retort", 200, 210))
    slowed = run_of(readings(LIMIT, 100, 100), readings("retort", 300, 315))
    rows, agree = compare(first, slowed)
    assert not agree
    assert [row[-1] for row in rows] == ["+50%"]
    assert compare(first, first)[1]


def test_a_missing_repeat_of_the_bare_client_is_no_ratio() -> None:
    run = run_of(readings("retort", 200, 210))
    assert run.readings.ratio("answers", "64 tokens, no logprobs", "retort", "cpu_us_per_row", LIMIT) is None
    assert goals_of(run) == []


def test_measures_made_one_after_the_other_are_one_run() -> None:
    told = {"sizes": "normal", "commit": "a", "machine": "m"}
    slots = [Reading("slots", "c", LIMIT, "busy_share", 0, 1.0)]
    first = Run(told, Readings([*readings(LIMIT, 100, 100, 100), *slots]))
    second = Run(told, Readings(readings(LIMIT, 200)), {"curator": "no network"})
    both = second.beside(first)
    assert both.readings.values("answers", "64 tokens, no logprobs", LIMIT, "cpu_us_per_row") == {0: 200}
    assert both.readings.values("slots", "c", LIMIT, "busy_share") == {0: 1}
    assert both.told["repeats"] == "slots 1, answers 1"
    assert both.left_out == {"curator": "no network"}
    with pytest.raises(ValueError, match="commit 'a' and 'b'"):
        Run({**told, "commit": "b"}, Readings()).beside(first)


def test_a_run_is_published(tmp_path: Path) -> None:
    """Twice: the second one replaces the first."""
    told = {"sizes": "normal", "when": "then", "commit": "c", "machine": "m", "repeats": "answers 2"}
    slow = {**told, "slowed on purpose": "0.5 s in each checkpoint"}
    page = tmp_path / "benchmarks.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    for name, own, facts in (("run", 200, told), ("again", 210, told), ("slowed", 300, slow)):
        Run(facts, Readings([*readings(LIMIT, 100, 100), *readings("retort", own, own + 20)])).save(
            tmp_path / f"{name}.json"
        )
    arguments = ["publish", str(tmp_path / "run.json"), "--docs", str(tmp_path)]
    for more in ([], ["--again", str(tmp_path / "again.json"), "--slowed", str(tmp_path / "slowed.json")]):
        made = bench(*arguments, *more)
        assert made.returncode == 0, made.stderr[-3000:]
    text = page.read_text()
    assert text.count("2.10 (2.00–2.20)") == 3  # as a goal, and in both comparisons
    assert "all ratios agree" in text
    assert "0.5 s in each checkpoint" in text
    assert "+48%" in text
    names = {path.name for path in (tmp_path / "bench").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("results", "again", "slowed") for kind in ("json", "md", "svg")
    }
