"""Whether a folder is the export that it says it is: every file, the manifest itself, card, Croissant, signature.

Reads files only: no service and no network.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from app.domain.splits import SPLITS
from app.errors import RetortError
from app.exporters import card, croissant, signing
from app.exporters.manifest import as_json, own_hash

_RAI: Final = (
    "rai:hasSyntheticData",
    "rai:dataLimitations",
    "rai:dataBiases",
    "rai:personalSensitiveInformation",
    "rai:dataUseCases",
    "rai:dataSocialImpact",
    "prov:wasGeneratedBy",
    "digitalSourceType",
)

_DATA: Final = re.compile(rf"({'|'.join(SPLITS)})-.*\.(jsonl|parquet)")


@dataclass(slots=True)
class Report:
    """What was found. `faults` are full sentences; none of them: the folder is whole.

    `signature_checked`: a signature was held against a key that was given, with the result in `signed_by` or `faults`.
    """

    folder: Path
    n_files: int = 0
    n_bytes: int = 0
    n_rows: int = 0
    signature_checked: bool = False
    signed_by: str | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def verify_export(folder: Path, public_key: bytes | None = None) -> Report:
    """Check everything that can be checked. With `public_key` (PEM) the signature must be there and be this key's;
    without, one that is there must fit the folder.
    """
    report = Report(folder)
    raw = _read(folder / signing.MANIFEST, report)
    if raw is None:
        return report
    manifest = _manifest(raw, report)
    if manifest is None:
        return report
    for told in manifest["files"]:
        _file(folder, told, report)
    report.n_rows = sum(told.get("n_rows") or 0 for told in manifest["files"] if told.get("split"))
    if report.n_rows != manifest.get("n_rows"):
        report.faults.append(
            f"the files hold {report.n_rows:,} rows, and the manifest says {manifest.get('n_rows'):,}"
        )
    known = {told["name"] for told in manifest["files"]} | {signing.MANIFEST, signing.SIGNATURE}
    for stranger in sorted(
        path.name for path in folder.iterdir() if path.name not in known and path.is_file()
    ):
        if _DATA.fullmatch(stranger):
            report.faults.append(
                f"{stranger} is not part of the export, and whoever loads its data files by their names loads that, too"
            )
        elif not stranger.startswith("."):
            report.warnings.append(f"{stranger} is not part of the export")
    report.faults += [*_origin(manifest), *_card(folder, manifest), *_croissant(folder, manifest)]
    _signature(folder, raw, manifest, public_key, report)
    return report


def _read(path: Path, report: Report) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        report.faults.append(f"{path.name} cannot be read: {error.strerror or error}")
        return None


def _manifest(raw: bytes, report: Report) -> dict[str, Any] | None:
    try:
        found = orjson.loads(raw)
        told = found["manifest_sha256"]
        names = [(file["name"], file["sha256"], file["n_bytes"]) for file in found["files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        report.faults.append(f"{signing.MANIFEST} is no manifest: {error!r}")
        return None
    if told != own_hash(found) or as_json(found) != raw:
        report.faults.append(f"{signing.MANIFEST} was changed since it was written")
        return None
    for name, _, _ in names:
        if Path(name).name != name:
            report.faults.append(f"{signing.MANIFEST} names {name!r}, which is no file of this folder")
            return None
    manifest: dict[str, Any] = found
    return manifest


def _file(folder: Path, told: dict[str, Any], report: Report) -> None:
    path = folder / told["name"]
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        why = (
            "is missing"
            if isinstance(error, FileNotFoundError)
            else f"cannot be read: {error.strerror or error}"
        )
        report.faults.append(f"{told['name']} {why}")
        return
    report.n_files += 1
    report.n_bytes += size
    if size != told["n_bytes"] or digest != told["sha256"]:
        report.faults.append(
            f"{told['name']} is not what the manifest says: SHA-256 {digest[:16]}…, {size:,} bytes"
        )
        return
    if told.get("split"):
        rows = _rows(path)
        if rows is not None and rows != told["n_rows"]:
            report.faults.append(
                f"{told['name']} holds {rows:,} rows, and the manifest says {told['n_rows']:,}"
            )


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file; None for another, whose lines need not be rows."""
    if path.suffix != ".parquet":
        return None
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return -1


def _origin(manifest: dict[str, Any]) -> Iterator[str]:
    """Every row names its teacher and job, and what they cost is told."""
    for name in ("teacher", "job"):
        nameless = manifest.get("counts", {}).get(name, {}).get("", 0)
        if nameless:
            yield f"{nameless:,} rows name no {name}: their origin is lost"
    for job in manifest.get("jobs", []):
        if not isinstance(job.get("totals"), dict) or "calls" not in job["totals"]:
            yield f"job {job.get('id')} tells no totals: what it cost is not known"
    if not manifest.get("jobs"):
        yield "the manifest names no job"


def _card(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    try:
        text = (folder / card.NAME).read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n", 2)[1])
        examples = sum(split["num_examples"] for split in front["dataset_info"]["splits"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        yield f"{card.NAME} is no dataset card: {error}"
        return
    if examples != manifest["n_rows"]:
        yield f"{card.NAME} speaks of {examples:,} rows, and the manifest of {manifest['n_rows']:,}"
    if not front.get("license") or "synthetic" not in front.get("tags", ()):
        yield f"{card.NAME} has no licence, or does not say that the data is synthetic"


def _croissant(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    try:
        found = orjson.loads((folder / croissant.NAME).read_bytes())
        files = {file["@id"]: file["sha256"] for file in found["distribution"]}
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        yield f"{croissant.NAME} is no Croissant file: {error!r}"
        return
    wanted = {file["name"]: file["sha256"] for file in manifest["files"] if file.get("split")}
    if files != wanted:
        yield f"{croissant.NAME} does not describe the files that the manifest names"
    if missing := [name for name in (*_RAI, "name", "license", "conformsTo") if not found.get(name)]:
        yield f"{croissant.NAME} lacks {', '.join(missing)}"


def _signature(
    folder: Path, raw: bytes, manifest: dict[str, Any], public_key: bytes | None, report: Report
) -> None:
    path = folder / signing.SIGNATURE
    if not path.exists():
        if manifest.get("signed_by") or public_key is not None:
            report.faults.append(
                f"{signing.SIGNATURE} is not here: the export cannot be told to be anybody's"
            )
        return
    told = manifest.get("public_key")  # whoever changes the folder can name a key of their own
    if public_key is None:
        report.warnings.append("it is signed; give the public key to have it checked by whom")
    key = public_key or (told.encode() if isinstance(told, str) else None)
    envelope = _read(path, report)
    if envelope is None or key is None:
        return
    try:
        signed = signing.verify(envelope, raw, key)
    except RetortError as error:
        report.faults.append(error.detail)
        return
    finally:
        report.signature_checked = public_key is not None
    report.signed_by = None if public_key is None else signing.key_id(public_key)
    unsigned = {file["name"] for file in manifest["files"]} - set(signed)
    if unsigned:
        report.faults.append(f"not signed: {', '.join(sorted(unsigned))}")
