"""Where each trainer's format puts a distribution, judged by a decoder that knows the format's own words only.

For every row that is taught, the decoder looks up the distribution that was made for that very token: a file shifted
by one position fails.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.errors import InvalidInput
from app.exporters import Unfit, exporter
from app.exporters.sequences import cut

from .batches import BINDING, Row, V, batch, json_rows, opened, parquet_rows, row, written

K = 4
SIGNAL = ("axolotl-kd", "distillkit", "tinker", "trl-rollouts", "slime")


@pytest.fixture(scope="module")
def rows() -> list[Row | None]:
    rng = np.random.default_rng(5)
    forced = row(rng, 3, 6)
    return [
        row(rng, 5, 4),
        None,
        replace(forced, drawn=[False, False, True, True, False, True]),
        row(rng, 1, 1),
        row(rng, 0, 3),
        row(rng, 4, 5, k=3),
        row(rng, 2, 7, k=9),
    ]


FIT = (0, 2, 3, 6)
DROPPED = {"no token ids": 1, "no token ids of the prompt": 1, f"fewer than {K} candidates stored": 1}


def candidates(one: Row, place: int) -> dict[int, float]:
    """The K likeliest tokens at a place of the completion."""
    lp = one.logprobs[place]
    return {int(i): float(lp[i]) for i in np.argsort(-lp)[:K]}


def kept(rows: list[Row | None]) -> list[Row]:
    return [one for i, one in enumerate(rows) if i in FIT and one is not None]


def normal(found: dict[int, float]) -> dict[int, float]:
    total = np.log(sum(np.exp(value) for value in found.values()))
    return {token: value - total for token, value in found.items()}


def same(found: dict[int, float], wanted: dict[int, float], tolerance: float = 1e-5) -> None:
    assert set(found) == set(wanted)
    for token, value in wanted.items():
        assert found[token] == pytest.approx(value, abs=tolerance)


def labels_of(one: Row) -> list[int]:
    return [-100] * len(one.prompt) + [t if d else -100 for t, d in zip(one.tokens, one.drawn, strict=True)]


def test_axolotl(rows: list[Row | None]) -> None:
    content, dropped = written(opened("axolotl-kd", top_k=K), rows)
    found = parquet_rows(content)
    assert dropped == DROPPED
    assert len(found) == len(FIT)
    for got, one in zip(found, kept(rows), strict=True):
        sequence = one.prompt + one.tokens
        assert got["input_ids"] == sequence
        assert got["attention_mask"] == [1] * len(sequence)
        assert got["labels"] == labels_of(one)
        for i in range(len(sequence)):
            taught = i + 1 < len(sequence) and got["labels"][i + 1] != -100
            assert got["target_mask"][i] == [int(taught)] * K
            assert np.isfinite(got["target_logprobs"][i]).all()
            if taught:
                here = dict(zip(got["target_token_ids"][i], got["target_logprobs"][i], strict=True))
                same(here, normal(candidates(one, i + 1 - len(one.prompt))))


@pytest.mark.parametrize("form", ["raw", "compressed"])
@pytest.mark.parametrize("labels", ["signal", "tokens"])
def test_distillkit(rows: list[Row | None], form: str, labels: str) -> None:
    made = opened("distillkit", top_k=K, form=form, labels=labels, logprobs="float16")
    content, dropped = written(made, rows)
    assert dropped == DROPPED
    for got, one in zip(parquet_rows(content), kept(rows), strict=True):
        sequence = one.prompt + one.tokens
        assert got["input_ids"] == sequence
        signal = [decoded(got, i, form) for i in range(len(sequence))]
        for i, here in enumerate(signal):
            assert np.isfinite(list(here.values())).all()
            place = i + 1 - len(one.prompt)
            taught = 0 <= place < len(one.tokens) and one.drawn[place]
            if labels == "signal":
                assert (got["labels"][i] >= 0) == taught
            if taught:
                same(here, candidates(one, place), 1e-5 if form == "raw" else 1 / 128)
        if labels == "tokens":
            assert got["labels"] == labels_of(one)


def decoded(got: dict[str, Any], i: int, form: str) -> dict[int, float]:
    if form == "raw":
        return dict(zip(got["token_ids"][i], got["top_values"][i], strict=True))
    bits = (V - 1).bit_length()
    stream = "".join(f"{byte:08b}" for byte in got["bytepacked_indices"][i])
    ids = [int(stream[j * bits : (j + 1) * bits], 2) for j in range(K)]
    assert len(got["bytepacked_indices"][i]) == -(-K * bits // 8)
    values = np.frombuffer(bytes(got["compressed_logprobs"][i]), "<f2").astype(float)
    return dict(zip(ids, values.tolist(), strict=True))


@pytest.mark.parametrize("form", ["raw", "compressed"])
@pytest.mark.parametrize("spread", [0.5, 4.0, 9.0, 12.0, 40.0])
def test_distillkit_takes_the_logarithm_of_what_is_left(form: str, spread: float) -> None:
    """In float32, where its own clamp at 1 - 1e-8 is none; masked positions are multiplied away, which NaN is not."""
    rng = np.random.default_rng(7)
    sure = row(rng, 3, 40)
    logits = np.zeros((40, V))
    logits[np.arange(40), sure.tokens] = spread + rng.normal(0, 1, 40)
    logits[:, 0] += spread / 2
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    made = opened("distillkit", top_k=K, form=form)
    (got,) = parquet_rows(written(made, [replace(sure, logprobs=logprobs.astype(np.float32))])[0])
    for i in range(len(got["input_ids"])):
        here = decoded(got, i, form)
        assert len(here) == K
        mass = np.exp(np.array(list(here.values()), np.float32)).sum(dtype=np.float32)
        assert mass < 1
        if 2 <= i < 42:
            same(here, candidates(replace(sure, logprobs=logprobs), i - 2), 1e-4 if form == "raw" else 1 / 63)


def test_distillkit_says_how_it_is_packed(rows: list[Row | None]) -> None:
    made = opened("distillkit", top_k=K)
    config = made.companions(None)["compression_config.yaml"].decode()  # type: ignore[arg-type]
    assert f"\nd: {V}\nk: {K}\nexact_k: {K}\nexact_dtype: float16\n" in config


def test_tinker(rows: list[Row | None]) -> None:
    content, dropped = written(opened("tinker", top_k=K), rows)
    assert dropped == DROPPED
    for got, one in zip(parquet_rows(content), kept(rows), strict=True):
        sequence = one.prompt + one.tokens
        assert got["model_input"] == sequence[:-1]
        assert len(got["target_tokens"]) == len(got["weights"]) == len(sequence) - 1
        for i in range(len(sequence) - 1):
            place = i + 1 - len(one.prompt)
            if place >= 0 and one.drawn[place]:
                here = dict(zip(got["target_tokens"][i], np.log(got["weights"][i]).tolist(), strict=True))
                same(here, normal(candidates(one, place)))
                assert sum(got["weights"][i]) == pytest.approx(1, abs=1e-6)
            else:
                assert got["weights"][i] == [0] * K


def test_trl_rollouts(rows: list[Row | None]) -> None:
    content, dropped = written(opened("trl-rollouts", top_k=K), rows)
    assert dropped == DROPPED
    outside = 0
    for got, one in zip(parquet_rows(content), kept(rows), strict=True):
        sequence = one.prompt + one.tokens
        assert got["input_ids"] == sequence
        assert got["completion_mask"] == [0] * len(one.prompt) + [int(d) for d in one.drawn]
        assert [turn["role"] for turn in got["prompt"] + got["completion"]] == ["user", "assistant"]
        for i in range(len(sequence)):
            here = dict(zip(got["teacher_topk_ids"][i], got["teacher_topk_logprobs"][i], strict=True))
            place = i - len(one.prompt)
            if place < 0 or not one.drawn[place]:
                assert set(here) == {-1}
                assert set(here.values()) == {-np.inf}
                continue
            wanted = candidates(one, place)
            if one.tokens[place] not in wanted:
                outside += 1
                wanted[one.tokens[place]] = float(one.logprobs[place, one.tokens[place]])
            assert len(got["teacher_topk_ids"][i]) == K + 1
            same({token: lp for token, lp in here.items() if token >= 0}, wanted)
    assert outside > 0


def test_slime(rows: list[Row | None]) -> None:
    content, dropped = written(opened("slime", top_k=K), rows)
    metadata, *found = json_rows(content)
    assert (metadata["type"], metadata["top_k"]) == ("metadata", K)
    assert dropped == DROPPED
    for got, one in zip(found, kept(rows), strict=True):
        assert got["tokens"] == one.prompt + one.tokens
        assert got["response_length"] == len(one.tokens) == len(got["teacher_log_probs"])
        assert got["loss_mask"] == [int(d) for d in one.drawn]
        for place, drawn in enumerate(one.drawn):
            here = dict(
                zip(got["teacher_top_k_ids"][place], got["teacher_top_k_logprobs"][place], strict=True)
            )
            if drawn:
                same(here, candidates(one, place))
                own = float(one.logprobs[place, one.tokens[place]])
                assert got["teacher_log_probs"][place] == pytest.approx(own, abs=1e-5)
            else:
                assert set(here) == {-1}


def test_trl_sft_tokens(rows: list[Row | None]) -> None:
    content, dropped = written(opened("trl-sft", rows="tokens"), rows)
    fit = [one for one in rows if one is not None and one.prompt]
    assert dropped == {"no token ids": 1, "no token ids of the prompt": 1}
    for got, one in zip(parquet_rows(content), fit, strict=True):
        assert got["input_ids"] == one.prompt + one.tokens
        assert got["labels"] == labels_of(one)


def test_all_that_is_stored_is_the_default() -> None:
    rng = np.random.default_rng(6)
    content, _ = written(opened("tinker"), [row(rng, 2, 2), row(rng, 2, 2)])
    assert {len(place) for got in parquet_rows(content) for place in got["weights"]} == {BINDING.top_logprobs}


def test_a_large_batch_is_cut_where_its_candidates_would_take_much_memory() -> None:
    rng = np.random.default_rng(7)
    whole = batch([row(rng, 10, 10) for _ in range(8)])
    pieces = list(cut(whole, 6, cells=300))
    assert [piece.num_rows for piece in pieces] == [2, 2, 2, 2]
    assert pa.Table.from_batches(pieces).equals(pa.Table.from_batches([whole]))
    assert [piece.num_rows for piece in cut(whole, 6, cells=1)] == [1] * 8


@pytest.mark.parametrize("name", SIGNAL)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_ids": False}, "gives none"),
        ({"top_logprobs": 0}, "no logprobs"),
        ({"top_logprobs": K - 1}, "3 candidates"),
        ({"logprobs_temperature": 0.7}, "cannot be re-tempered"),
        ({"logprobs_mode": "processed_logprobs"}, "processed_logprobs"),
    ],
)
def test_rows_that_cannot_be_written_are_refused(name: str, change: dict[str, Any], why: str) -> None:
    with pytest.raises(Unfit, match=why):
        exporter(name, {"top_k": K}).check([replace(BINDING, **change)])


@pytest.mark.parametrize("name", [*SIGNAL, "trl-sft"])
@pytest.mark.parametrize(
    "other",
    [
        {"tokenizer_sha256": "bb" * 32},
        {"vocab_size": V + 1},
        {"tokenizer_sha256": None, "model": "another"},
    ],
)
def test_two_vocabularies_are_refused(name: str, other: dict[str, Any]) -> None:
    made = exporter(name, {"rows": "tokens"} if name == "trl-sft" else {})
    made.check([BINDING, replace(BINDING, job="job_2")])
    with pytest.raises(Unfit, match="one vocabulary"):
        made.check([BINDING, replace(BINDING, teacher="u", **other)])


def test_packing_ids_needs_the_size_of_the_vocabulary() -> None:
    binding = replace(BINDING, vocab_size=None)
    with pytest.raises(Unfit, match="form: raw"):
        exporter("distillkit", {}).check([binding])
    exporter("distillkit", {"form": "raw"}).check([binding])


def test_an_option_that_is_none_is_named_with_its_format() -> None:
    with pytest.raises(
        InvalidInput, match="format 'axolotl-kd': #/options/topk: no such option; there are: top_k"
    ):
        exporter("axolotl-kd", {"topk": 3})
