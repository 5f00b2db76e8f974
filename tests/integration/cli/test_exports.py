"""retort exports …, and what `retort export` can choose."""

import json
from pathlib import Path

from tests.integration.cli.conftest import Retort


def test_exports_are_chosen_listed_and_deleted(retort: Retort, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps(
                {"prompt": f"{tmp_path} {i}", "license": "MIT", "metadata": {"level": i, "odd": i % 2 == 1}}
            )
            + "\n"
            for i in range(6)
        )
    )
    job = retort("submit", prompts, "--teacher", "t", "--watch", "--json").json["id"]
    to = tmp_path / "out"
    chosen = (
        "--where",
        "level=2..4",
        "--where",
        "odd=false",
        "-o",
        "columns=messages",
        "-o",
        "reasoning=think",
    )
    found = retort("export", job, "--to", to, *chosen, "--json")
    assert found.code == 0, found.err
    made = found.json
    assert made["n_rows"] == 2
    rows = [json.loads(line) for line in (to / "train-00000.jsonl").read_text().splitlines()]
    assert [(list(row), row["messages"][0]["content"]) for row in rows] == [
        (["row_id", "messages"], f"{tmp_path} {i}") for i in (2, 4)
    ]
    (to / "train-00001.jsonl").touch()  # of a larger export that was fetched here before
    mixed = retort("export", job, "--to", to, *chosen)
    assert (mixed.code, "holds data files of another export (train-00001.jsonl)" in mixed.err) == (1, True)
    made = retort("exports", "list", "--json").json[0]
    assert made["id"] in retort("exports", "list").out
    shown = retort("exports", "show", made["id"]).out
    assert "completed, jsonl: 2 rows" in shown
    assert "train-00000.jsonl" in shown
    refused = retort("exports", "cancel", made["id"])
    assert refused.code == 4
    assert "nothing to cancel" in refused.err
    assert "deleted" in retort("exports", "delete", made["id"]).out
    assert retort("exports", "show", made["id"], "--json").json["status"] == "deleted"
    formats = {one["name"]: one for one in retort("exports", "formats", "--json").json}
    assert set(formats["jsonl"]["options"]["properties"]) == {"reasoning", "columns"}
    assert "parquet" in retort("exports", "formats").out


def test_what_is_chosen_wrongly(retort: Retort, tmp_path: Path) -> None:
    for options, told in (
        (("--where", "level"), "write NAME=VALUE"),
        (("--where", "level=.."), "write PATH=LOW..HIGH"),
        (("--split", "train=0.5"), "must add up to 1"),
    ):
        found = retort("export", "job_1", "--to", tmp_path / "x", *options)
        assert found.code == 2
        assert told in found.err
    found = retort("export", "job_1", "--to", tmp_path / "x", "-o", "reasoning=loud")
    assert (found.code, "format 'jsonl': #/options/reasoning" in found.err) == (4, True)
