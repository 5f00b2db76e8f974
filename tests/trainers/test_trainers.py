"""Each export goes through the trainer's own loader, collator and loss.

Teacher and student are one tiny model: the divergence from the exported signal vanishes, but for the rounding of the
stored logprobs; the same data rolled by one position diverges.
"""

import pytest

from .conftest import TOP_K, Capture, Check

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(900)]

VANISHES, DIVERGES = 1e-5, 0.5


def test_axolotl(check: Check) -> None:
    found = check("axolotl-kd")
    assert found["tokenised"] is True
    assert abs(found["kl"]) < VANISHES
    assert found["rolled"] > DIVERGES


@pytest.mark.parametrize("form", ["compressed", "raw"])
def test_distillkit(check: Check, form: str) -> None:
    found = check("distillkit", form=form)
    assert abs(found["kl"]) < VANISHES
    assert found["rolled"] > DIVERGES


def test_tinker(check: Check, capture: Capture) -> None:
    found = check("tinker")
    assert (found["datums"], found["type"]) == (len(capture.columns), "tinker")
    assert abs(found["kl"]) < VANISHES
    assert found["rolled"] > DIVERGES


def test_trl_rollouts(check: Check, capture: Capture) -> None:
    found = check("trl-rollouts")
    assert found["samples"] == len(capture.columns)
    assert abs(found["kl"]) < VANISHES
    assert found["rolled"] > DIVERGES


def test_slime(check: Check) -> None:
    found = check("slime")
    assert found["top_k"] == TOP_K
    assert abs(found["kl"]) < VANISHES
    assert found["rolled"] > DIVERGES


def test_trl_sft_on_token_ids(check: Check, capture: Capture) -> None:
    found = check("trl-sft", rows="tokens")
    assert found["taught"] == sum(len(columns) for columns in capture.columns)
    own = -sum(float(c.sampled_logprob.sum()) for c in capture.columns) / found["taught"]
    assert found["loss"] == pytest.approx(own, rel=0.15)  # a mean of batches' means


@pytest.mark.parametrize("rows", ["messages", "prompt-completion"])
def test_trl_sft_on_text(check: Check, capture: Capture, rows: str) -> None:
    found = check("trl-sft", rows=rows)
    assert found["taught"] > 0
    assert all(answer in found["text"] for answer in capture.answers())
    assert (found["masked"] > 0) == (rows == "prompt-completion")


@pytest.mark.parametrize("name", ["parquet", "jsonl", "axolotl-kd", "trl-sft"])
def test_mlcroissant_iterates_the_records(check: Check, capture: Capture, name: str) -> None:
    found = check(name, by="mlcroissant")
    assert found["errors"] == []
    assert found["counts"] == {"train-00000": len(capture.columns)}
    assert found["first"].keys() >= {"parquet": {"topk_ids"}, "axolotl-kd": {"labels"}}.get(
        name, {"messages"}
    )


@pytest.mark.parametrize("name", ["llama-factory", "ms-swift", "verl"])
def test_text_formats(check: Check, capture: Capture, name: str) -> None:
    found = check(name)
    assert found["rows"] == len(capture.columns)
    for got, answer in zip(found["answers"], capture.answers(), strict=True):
        assert answer in got
    assert found.get("whole", found["rows"]) == found["rows"]
