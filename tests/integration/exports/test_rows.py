"""Which rows an export holds, in which order, with which columns."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, delete, update

from app.db.models import Completion, PromptRow
from app.db.policy_models import PromptPart
from app.db.session import transaction
from app.errors import InvalidInput, NotFound
from app.storage.places import Storage
from tests.fixtures.completed import Rows, add_job, complete, tokens_of

from .exporting import ask, lines, look, made, run, table

JOB = Rows(prompts=30, n=2, teachers=("a", "b"), tokens=5, k=3)


@pytest.fixture
def job(engine: Engine, storage: Storage) -> Rows:
    add_job(engine, JOB)
    complete(engine, storage, JOB)
    return JOB


def test_native_rows_hold_the_tokens_of_their_completion(engine: Engine, storage: Storage, job: Rows) -> None:
    view = made(engine, storage)
    found = table(engine, storage, view)
    wanted = [(p, t, i) for p in range(30) for t in range(2) for i in range(2)]
    assert found.column("row_id").to_pylist() == [f"job_1/0/{p}/{t}/{i}" for p, t, i in wanted]
    for row, (prompt, teacher, index) in zip(found.to_pylist(), wanted, strict=True):
        tokens = tokens_of(prompt, index, teacher, job)
        assert row["input_ids"] == [*tokens.prompt_ids.tolist(), *tokens.token_ids.tolist()]
        assert row["loss_mask"] == [0] * 12 + [1] * 5
        assert (row["lp_first"], row["lp_count"], row["lp_k"]) == (12, 5, 3)
        assert row["topk_ids"] == tokens.topk_ids.reshape(-1).tolist()
        np.testing.assert_allclose(
            np.array(row["topk_logprobs"]), tokens.topk_logprobs.reshape(-1), atol=1 / 128
        )
        np.testing.assert_array_equal(np.float32(row["sampled_logprob"]), tokens.sampled_logprob)
        np.testing.assert_array_equal(np.float32(row["tail_logmass"]), tokens.tail_logmass)
        assert row["teacher"] == "ab"[teacher]
        assert (row["tokenizer_sha256"], row["vocab_size"]) == ("aa" * 32, 50_000)
        assert row["messages"][-1]["content"] == row["answer"]
        assert row["messages"][0]["content"] == row["prompt"] == f"What is {prompt % 97} plus {prompt}?"
        assert (row["response_sha256"] is None) == (prompt % 2 == 0)


def test_rows_of_a_shard_that_is_not_finished_come_from_its_parts(engine: Engine, storage: Storage) -> None:
    rows = Rows(prompts=20, tokens=4, k=2)
    add_job(engine, rows)
    assert complete(engine, storage, rows, 1) == 1
    assert complete(engine, storage, rows, 1, finish=False) == 1
    found = table(engine, storage, made(engine, storage))
    assert found.column("prompt_number").to_pylist() == list(range(16))
    assert found.column("lp_count").to_pylist() == [4] * 16


def test_an_export_holds_what_was_there_when_it_was_asked_for(engine: Engine, storage: Storage) -> None:
    rows = Rows(prompts=24, tokens=2, k=1)
    add_job(engine, rows)
    complete(engine, storage, rows, 1)
    asked = ask(engine)
    complete(engine, storage, rows, 1)
    assert run(engine, storage)
    assert look(engine, asked.id).n_rows == 8
    assert made(engine, storage).n_rows == 16


FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"teachers": ["b"]}, lambda row: row["teacher"] == "b"),
    ({"finish_reasons": ["length"]}, lambda row: row["finish_reason"] == "length"),
    ({"reasoning": True}, lambda row: row["reasoning"] is not None),
    ({"reasoning": False}, lambda row: row["reasoning"] is None),
    ({"reasoning_truncated": True}, lambda row: row["prompt_number"] == 4),
    ({"prompt_licenses": ["MIT"]}, lambda row: row["prompt_number"] == 5),
    ({"teacher_licenses": ["Apache-2.0"]}, lambda row: True),
    ({"stages": ["generate"]}, lambda row: True),
    ({"metadata": [{"path": "i", "min": 3, "max": 8}]}, lambda row: 3 <= row["prompt_number"] <= 8),
    ({"metadata": [{"path": "even", "equals": True}]}, lambda row: row["prompt_number"] % 2 == 0),
    ({"metadata": [{"path": "absent", "min": 0}]}, lambda row: False),
]


def test_filters(engine: Engine, storage: Storage, job: Rows) -> None:
    with transaction(engine) as connection:
        connection.execute(
            update(Completion).where(Completion.prompt_number == 4).values(reasoning_truncated=True)
        )
        connection.execute(
            update(Completion).where(Completion.prompt_number == 5).values(prompt_license="MIT")
        )
        connection.execute(update(PromptRow).where(PromptRow.number == 5).values(license="MIT"))
        connection.execute(delete(PromptPart))  # counted anew, with the MIT prompt
    everything = lines(engine, storage, made(engine, storage, format="jsonl"))
    for selection, kept in FILTERS:
        view = made(engine, storage, format="jsonl", selection={"jobs": ["job_1"], **selection})
        wanted = [row for row in everything if kept(row)]
        assert lines(engine, storage, view) == wanted, selection
        assert view.n_rows == len(wanted)


def test_what_is_asked_wrongly_is_refused_with_the_reason(
    engine: Engine, storage: Storage, job: Rows
) -> None:
    for spec, reason in (
        ({"format": "csv"}, "there are: jsonl, parquet"),
        ({"format": "jsonl", "options": {"reasoning": "shout"}}, r"format 'jsonl': #/options/reasoning"),
        ({"format": "jsonl", "options": {"nope": 1}}, "no such option; there are: reasoning, columns"),
        ({"selection": {"jobs": ["job_1"], "teachers": ["c"]}}, "no teachers c; they have: a, b"),
        ({"selection": {"jobs": ["job_1"], "stages": ["judge"]}}, "no stages judge; they have: generate"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            ask(engine, **spec)
    with pytest.raises(NotFound, match="no job 'job_2'"):
        ask(engine, selection={"jobs": ["job_2"]})


def test_a_selection_of_nothing_is_one_empty_file(engine: Engine, storage: Storage, job: Rows) -> None:
    view = made(engine, storage, selection={"jobs": ["job_1"], "finish_reasons": ["tool_calls"]})
    data = [(file.name, file.n_rows) for file in view.files if file.n_rows is not None]
    assert data == [("train-00000.parquet", 0)]
    assert table(engine, storage, view).num_rows == 0
