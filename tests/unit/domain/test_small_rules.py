"""Sampling parameters, fingerprints, and the moves between statuses."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.domain.fingerprints import canonical_json, chained, fingerprint, new_id
from app.domain.lifecycle import CLAIMABLE, ENDED, JobStatus, check_move
from app.domain.sampling import SamplingOverrides, SamplingParameters
from app.errors import IllegalTransition


def test_a_prompts_own_parameters_go_before_the_jobs() -> None:
    job = SamplingParameters(temperature=0.5, max_tokens=100, stop=("x",))
    own = SamplingOverrides(temperature=0.0, seed=3)
    assert job.overridden(own).asked() == {"temperature": 0.0, "max_tokens": 100, "stop": ["x"], "seed": 3}
    assert job.overridden(None) is job


def test_siblings_have_seeds_of_their_own() -> None:
    assert SamplingParameters(seed=5).for_sample(3).seed == 8
    assert SamplingParameters(seed=2**63 - 1).for_sample(2).seed == 1, "it stays a seed"
    assert SamplingParameters().for_sample(3).seed is None
    given_ = SamplingParameters(seed=5)
    assert given_.for_sample(0) is given_


def test_the_teachers_own_default_can_be_asked_for() -> None:
    assert SamplingParameters(temperature=None, max_tokens=None).asked() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": 0},
        {"min_p": 1.1},
        {"max_tokens": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"presence_penalty": 3},
        {"repetition_penalty": 0},
        {"stop": ["x"] * 17},
        {"temprature": 1},
    ],
)
def test_parameters_that_no_teacher_takes(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplingParameters.model_validate(wrong)


@given(st.dictionaries(st.text(), st.integers(0, 9) | st.text()))
def test_equal_values_have_equal_fingerprints_in_any_order(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(turned)
    assert fingerprint(value) == fingerprint(turned)
    assert json.loads(canonical_json(value)) == value


def test_a_chain_tells_order_and_length() -> None:
    empty, a, b = b"\0" * 32, fingerprint("a"), fingerprint("b")
    hashes = {
        empty,
        chained(empty, a),
        chained(empty, b),
        chained(chained(empty, a), b),
        chained(chained(empty, b), a),
        chained(chained(empty, a), a),
    }
    assert len(hashes) == 6


def test_ids_are_unique_sorted_by_time_and_speakable() -> None:
    first = [new_id("job") for _ in range(1000)]
    time.sleep(0.002)
    second = [new_id("job") for _ in range(1000)]
    assert len({*first, *second}) == 2000
    assert max(first) < min(second)
    assert all(
        len(found) == 24 and found[4:].isalnum() and not set("ilou") & set(found[4:]) for found in first
    )


def test_moves() -> None:
    check_move(JobStatus.READY, JobStatus.RUNNING)
    check_move(JobStatus.COMPLETED, JobStatus.RUNNING)
    with pytest.raises(
        IllegalTransition, match="cancelled cannot become running; from here it can become: nothing"
    ):
        check_move(JobStatus.CANCELLED, JobStatus.RUNNING)
    with pytest.raises(IllegalTransition, match="can become: cancelled, ready, running"):
        check_move(JobStatus.PAUSED, JobStatus.COMPLETED)


def moves(start: JobStatus) -> set[JobStatus]:
    found = set()
    for wanted in JobStatus:
        try:
            check_move(start, wanted)
        except IllegalTransition:
            continue
        found.add(wanted)
    return found


def test_every_status_is_reached_and_every_running_job_can_end() -> None:
    reached, waiting = {JobStatus.READY}, [JobStatus.READY]
    while waiting:
        for status in moves(waiting.pop()) - reached:
            reached.add(status)
            waiting.append(status)
    assert reached == set(JobStatus)
    for status in set(JobStatus) - ENDED:
        assert JobStatus.CANCELLED in moves(status), f"a {status} job cannot be cancelled"
    assert moves(JobStatus.CANCELLED) == set()
    assert not CLAIMABLE & ENDED
