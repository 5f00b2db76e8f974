"""What lies beside the data: the card, the Croissant file, the manifest; and that one changed byte is found."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from sqlalchemy import Engine

from app.exporters import known_formats, signing
from app.exporters.manifest import as_json, with_own_hash
from app.exporters.verify import verify_export
from app.services import export
from app.storage.places import Storage
from tests.fixtures.completed import Rows, add_job, complete, set_times

from .exporting import ask, folder, look, made, table

JOB = Rows(prompts=40, n=2, tokens=4, k=3)
SPLIT = {"train": 0.75, "test": 0.25}
OPTIONS: dict[str, dict[str, Any]] = {"trl-sft": {"rows": "tokens"}}


@pytest.fixture
def whole(sqlite_engine: Engine, storage: Storage, tmp_path: Path) -> Path:
    """A native export in two splits, in a folder."""
    view = made(sqlite_engine, storage, split=SPLIT, name='A "name" | with ümlauts: #1')
    return folder(sqlite_engine, storage, view, tmp_path / "whole")


@pytest.fixture
def sqlite_engine(sqlite_url: str, storage: Storage) -> Engine:
    from app.db.session import connect

    database = connect(sqlite_url)
    add_job(database, JOB)
    complete(database, storage, JOB)
    set_times(database)
    return database


def test_a_whole_export_verifies(whole: Path) -> None:
    report = verify_export(whole)
    assert report.faults == report.warnings == []
    assert report.n_rows == 80
    assert report.n_files == len(list(whole.iterdir())) - 1


def test_one_flipped_bit_anywhere_is_found(whole: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for path in sorted(whole.iterdir()):
        before = path.read_bytes()
        places = {0, len(before) - 1, *rng.integers(0, len(before), 25).tolist()}
        for place in places:
            changed = bytearray(before)
            changed[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(changed)
            assert verify_export(whole).faults, f"{path.name}, byte {place}"
        path.write_bytes(before)
    assert not verify_export(whole).faults


def test_every_byte_of_the_manifest_counts(whole: Path) -> None:
    path = whole / "manifest.json"
    before = path.read_bytes()
    for other in (
        before.replace(b"\n", b"\r", 1),
        before + b" ",
        before.rstrip(),
        before.replace(b"  ", b"\t", 1),
    ):
        path.write_bytes(other)
        assert verify_export(whole).faults


def test_a_manifest_that_was_made_anew_still_has_to_agree_with_the_files(whole: Path) -> None:
    path = whole / "manifest.json"
    told = orjson.loads(path.read_bytes())

    def faults(**changes: Any) -> list[str]:
        path.write_bytes(as_json(with_own_hash({**told, **changes})))
        return verify_export(whole).faults

    assert faults() == []
    assert any("rows" in fault for fault in faults(n_rows=81))
    nameless = {**told["counts"], "teacher": {"": 1, **told["counts"]["teacher"]}}
    assert faults(counts=nameless) == ["1 rows name no teacher: their origin is lost"]
    assert faults(jobs=[{**told["jobs"][0], "totals": None}]) == [
        "job job_1 tells no totals: what it cost is not known"
    ]
    assert faults(jobs=[]) == ["the manifest names no job"]
    outside = [{**told["files"][0], "name": "../../etc/passwd"}, *told["files"][1:]]
    assert "no file of this folder" in faults(files=outside)[0]


def test_missing_and_strange_files(whole: Path) -> None:
    (whole / "notes.txt").write_text("mine")
    assert verify_export(whole).warnings == ["notes.txt is not part of the export"]
    (whole / "train-00001.parquet").write_bytes((whole / "train-00000.parquet").read_bytes())
    assert verify_export(whole).faults == [
        "train-00001.parquet is not part of the export, and whoever loads its data files by their names loads that, too"
    ]
    (whole / "train-00001.parquet").unlink()
    (whole / "croissant.json").unlink()
    faults = verify_export(whole).faults
    assert faults[0].startswith("croissant.json is missing")
    shutil.rmtree(whole)
    whole.mkdir()
    assert verify_export(whole).faults[0].startswith("manifest.json cannot be read")


def test_a_signature_is_asked_for_and_checked(
    sqlite_engine: Engine, storage: Storage, tmp_path: Path
) -> None:
    key = signing.new_private_key()
    asked = ask(sqlite_engine)
    assert export.run_next(sqlite_engine, storage, "w1", 60, lambda: False, 0, signing_key=key)
    path = folder(sqlite_engine, storage, look(sqlite_engine, asked.id), tmp_path / "signed")
    public, other = signing.public_key_of(key), signing.public_key_of(signing.new_private_key())
    assert verify_export(path).warnings == ["it is signed; give the public key to have it checked by whom"]
    envelope = path / signing.SIGNATURE
    before = envelope.read_bytes()
    for place in range(0, len(before), 61):
        envelope.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        found = verify_export(path)  # nobody has given a key
        assert found.faults, place
        assert not found.signature_checked
    envelope.write_bytes(before)
    report = verify_export(path, public)
    assert (report.faults, report.signed_by) == ([], signing.key_id(public))
    assert "was not signed by this key" in verify_export(path, other).faults[0]
    # A new manifest with a hash and a signature of its own passes for whole, and not for signed by this key.
    told = orjson.loads((path / "manifest.json").read_bytes())
    manifest = as_json(with_own_hash({**told, "name": "another"}))
    (path / "manifest.json").write_bytes(manifest)
    assert "is not the one that was signed" in verify_export(path).faults[0]
    thief = signing.new_private_key()
    manifest = as_json(with_own_hash({**told, "public_key": signing.public_key_of(thief).decode()}))
    (path / "manifest.json").write_bytes(manifest)
    envelope.write_bytes(signing.sign(manifest, thief))
    assert verify_export(path).faults == []
    assert verify_export(path, public).faults
    (path / signing.SIGNATURE).unlink()
    assert "is not here" in verify_export(path).faults[0]


def test_the_card_is_the_hubs(whole: Path, sqlite_engine: Engine) -> None:
    card = DatasetCard.load(whole / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "cc0-1.0"
    assert {"synthetic", "distillation"} <= set(data["tags"])
    assert data["size_categories"] == ["n<1K"]
    assert {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]}.keys() == {
        "train",
        "test",
    }
    for words in (
        "scripted-t0",
        "Apache-2.0",
        "CC0-1.0",
        "## Compute",
        "generation depth",
        "load_dataset",
        "temperature 0.7",
    ):
        assert words in card.text, words


def test_the_folder_loads_by_its_card(
    whole: Path, sqlite_engine: Engine, storage: Storage, tmp_path: Path
) -> None:
    found = load_dataset(str(whole), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in ("train", "test") for row in found[split]]
    wanted = table(sqlite_engine, storage, made(sqlite_engine, storage))
    assert {row["row_id"] for row in rows} == set(wanted.column("row_id").to_pylist())
    assert rows[0]["messages"][0].keys() == {
        "role",
        "content",
        "reasoning_content",
        "name",
        "tool_calls_json",
        "tool_call_id",
    }


@pytest.mark.parametrize("name", known_formats())
def test_every_format_verifies_and_loads(
    sqlite_engine: Engine, storage: Storage, tmp_path: Path, name: str
) -> None:
    view = made(sqlite_engine, storage, format=name, options=OPTIONS.get(name, {}), split=SPLIT)
    path = folder(sqlite_engine, storage, view, tmp_path / "made")
    assert verify_export(path).faults == []
    told = orjson.loads((path / "manifest.json").read_bytes())
    if name == "slime":  # its first line is no row
        return
    found = load_dataset(str(path), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in found.items()} == told["splits"]


def test_the_croissant_file_tells_what_it_must(whole: Path) -> None:
    found = orjson.loads((whole / "croissant.json").read_bytes())
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert found["rai:hasSyntheticData"] is True
    assert found["datePublished"] == "2023-11-14"
    assert [file["@id"] for file in found["distribution"]] == ["train-00000.parquet", "test-00000.parquet"]
    activity = found["prov:wasGeneratedBy"][0]
    assert activity["@id"] == "urn:retort:job:job_1"
    assert "scripted-t0" in activity["prov:wasAssociatedWith"][0]["prov:label"]
    fields = {field["name"]: field for field in found["recordSet"][0]["field"]}
    assert fields["train-00000/topk_ids"]["dataType"] == "sc:Integer"
    assert fields["train-00000/topk_ids"]["arrayShape"] == "-1"
    assert {sub["name"].rpartition("/")[2] for sub in fields["train-00000/messages"]["subField"]} >= {
        "role",
        "content",
    }
