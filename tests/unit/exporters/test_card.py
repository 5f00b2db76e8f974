"""The dataset card, made of a summary alone."""

from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard

from app.exporters import Summary, card, format_of
from app.exporters.croissant import described
from app.policy.decisions import DatasetLicence
from app.policy.notice import StudentNotice
from app.policy.record import PermissionsRecord


def job(job_id: str, *teachers: dict[str, Any]) -> dict[str, Any]:
    return {"id": job_id, "name": job_id, "code_version": "1", "stages": [], "teachers": list(teachers)}


def teacher(name: str, depth: int) -> dict[str, Any]:
    return {"name": name, "model": "m", "access_route": "weights", "generation_depth": depth}


def summary(licence: str, *jobs: dict[str, Any], **counts: dict[str, int]) -> Summary:
    permissions = PermissionsRecord(
        train="yes",
        compete="yes",
        commercial="yes",
        redistribute="yes",
        research_only=False,
        share_alike=(),
        obligations=(),
    )
    none: dict[str, Any] = dict.fromkeys(
        ("notices", "displays", "attributions", "use_policies", "size_gates", "naming", "share_alike"), ()
    )
    notice = StudentNotice(
        required_name_prefix=None,
        conflicting_name_prefixes=(),
        share_alike_as=(),
        non_commercial=False,
        research_only=False,
        may_compete="yes",
        permissions=permissions,
        license=DatasetLicence(license=licence, by_part={}),
        teachers=(),
        policy_version="1",
        **none,
    )
    return Summary(
        name="a set",
        format="jsonl",
        options={},
        selection={},
        split=None,
        intended_use={},
        schema=pa.schema([("messages", pa.string())]),
        files=(),
        bindings=(),
        jobs=jobs,
        counts=counts,
        notice=notice,
    )


def text(made: Summary) -> str:
    return card.card(made, format_of("jsonl")).decode()


def front(content: str) -> dict[str, Any]:
    """The front matter as the Hub's own client reads it."""
    return dict(vars(DatasetCard(content).data))


def test_a_teacher_that_became_another_generation_has_a_line_for_each() -> None:
    made = summary(
        "MIT",
        job("job_1", teacher("small", 0)),
        job("job_2", teacher("small", 1)),
        teacher={"small": 7},
        job={"job_1": 4, "job_2": 3},
    )
    told = text(made)
    assert "| small | m | not told | weights | not told | by model and route | 0 | 4 |" in told
    assert "| small | m | not told | weights | not told | by model and route | 1 | 3 |" in told
    both = job("job_2", teacher("small", 1), teacher("large", 0))
    apart = text(
        summary("MIT", job("job_1", teacher("small", 0)), both, teacher={"small": 7, "large": 2}, job={})
    )
    assert "| 1 | not counted apart |" in apart
    assert "| large | m | not told | weights | not told | by model and route | 0 | 2 |" in apart


def test_a_licence_that_the_hub_does_not_know_has_an_id_for_a_name() -> None:
    """As its documentation of cards asks: an id, and a link to a file named LICENSE or an address, or none."""
    for licence, name in (
        ("other", "see-student-notice"),
        ("CC-BY-4.0 AND LicenseRef-ours", "cc-by-4.0-and-licenseref-ours"),
    ):
        data = front(text(summary(licence)))
        assert (data["license"], data["license_name"]) == ("other", name)
        assert "license_link" not in data
    assert front(text(summary("CC-BY-4.0")))["license"] == "cc-by-4.0"


def test_nobody_is_sent_to_a_strangers_package() -> None:
    """Retort is not on PyPI; what is there by that name is somebody else's."""
    made = summary("MIT")
    assert "pypi.org" not in text(made)
    assert "pypi.org" not in str(described(made))
