"""`croissant.json` beside the data: Croissant 1.1 with its responsible-AI and PROV terms, made of the summary alone.

Every data file is a FileObject with its SHA-256 and a RecordSet of its columns. Specifications:
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html, https://docs.mlcommons.org/croissant/docs/croissant-rai-spec.html
"""

from collections.abc import Iterable
from typing import Any, Final

import orjson
import pyarrow as pa

from app.exporters.base import DataFile, Summary

NAME: Final = "croissant.json"
CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.1"
_MACHINE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_COMPOSITE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(summary: Summary) -> bytes:
    """The description, indented JSON-LD."""
    return orjson.dumps(described(summary), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def described(summary: Summary) -> dict[str, Any]:
    """The description as JSON-ready values."""
    days = sorted(day for day in summary.counts.get("generated_on", {}) if day and day[0].isdigit())
    made: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": summary.name,
        "description": (
            f"{summary.n_rows:,} answers of machine teachers to prompts, made and kept with their origin by Retort; "
            f"format {summary.format}."
        ),
        "license": _license(summary),
        "version": "1.0.0",
        "keywords": ["synthetic", "distillation", "language model"],
        "creator": {"@type": "sc:Organization", "name": "The operator of a Retort service"},
        "url": "README.md",  # beside it, wherever the folder lies
        "isLiveDataset": False,
        "digitalSourceType": _COMPOSITE if summary.counts.get("prompt_source") else _MACHINE,
        **({"temporalCoverage": f"{days[0]}/{days[-1]}", "datePublished": days[-1]} if days else {}),
        **_responsible_ai(summary),
        **_provenance(summary),
        "distribution": [_file(file) for file in summary.files],
        "recordSet": [_records(summary.schema, file) for file in summary.files],
    }
    return made


def _license(summary: Summary) -> str | list[str]:
    """SPDX addresses; where parts differ, each part's."""
    if summary.notice is None:
        return "other"
    found = summary.notice.license
    expressions = [found.license] if found.license != "other" else sorted(set(found.by_part.values()))
    told = [f"https://spdx.org/licenses/{one}.html" if " " not in one else one for one in expressions]
    return told[0] if len(told) == 1 else told or "other"


def _responsible_ai(summary: Summary) -> dict[str, Any]:
    sources = sorted(name for name in summary.counts.get("prompt_source", {}) if name)
    teachers = ", ".join(_teachers(summary)) or "none"
    failed = sum(_total(job, "failed") for job in summary.jobs)
    left_out = sum(summary.counts.get("dropped", {}).values()) + sum(
        summary.counts.get("left_out", {}).values()
    )
    notice = summary.notice
    return {
        "rai:hasSyntheticData": True,
        "rai:dataCollection": f"Prompts were sent to {teachers}; every answer was kept with its parameters and hashes.",
        "rai:dataCollectionType": ["Software Collection", "Others"],
        "rai:dataCollectionMissingData": f"{failed:,} completions failed; {left_out:,} rows were left out.",
        "rai:dataCollectionRawData": ", ".join(sources[:100]) or "The prompts name no source.",
        "rai:dataLimitations": "Answers are a machine's: they may be wrong, and nobody has judged them.",
        "rai:dataBiases": "The data carries the biases of its teachers and of whoever chose the prompts.",
        "rai:personalSensitiveInformation": [
            "Not checked for: prompts or answers may hold personal information."
        ],
        "rai:dataUseCases": _uses(summary),
        "rai:dataSocialImpact": "A student trained on it may pass on its teachers' faults, and may lose refusals.",
        "rai:dataReleaseMaintenancePlan": "An immutable snapshot: what changes is a new export.",
        "usageInfo": "STUDENT_NOTICE.md" if notice is not None else "",
    }


def _uses(summary: Summary) -> list[str]:
    meant = [name for name, declared in summary.intended_use.items() if declared]
    return [f"Training language models; declared use: {', '.join(meant) or 'nothing in particular'}."]


def _provenance(summary: Summary) -> dict[str, Any]:
    sources = sorted(name for name in summary.counts.get("prompt_source", {}) if name)[:100]
    return {
        "prov:wasDerivedFrom": [{"@type": "prov:Entity", "prov:label": name} for name in sources],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity",
                "@id": f"urn:retort:job:{job['id']}",
                "prov:label": str(job["name"]),
                "prov:wasAssociatedWith": [
                    {
                        "@type": ["prov:SoftwareAgent"],
                        "prov:label": f"{one['model']} ({one['name']}, by {one['access_route']})",
                    }
                    for one in job.get("teachers", [])  # type: ignore[union-attr]
                    if isinstance(one, dict)
                ],
            }
            for job in summary.jobs
        ],
    }


def _teachers(summary: Summary) -> list[str]:
    return sorted({str(binding.model) for binding in summary.bindings})


def _total(job: dict[str, Any], name: str) -> int:
    totals = job.get("totals")
    return int(totals.get(name, 0)) if isinstance(totals, dict) else 0


def _file(file: DataFile) -> dict[str, Any]:
    parquet = file.name.endswith(".parquet")
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "contentUrl": file.name,
        "contentSize": f"{file.n_bytes} B",
        "encodingFormat": "application/x-parquet" if parquet else "application/jsonlines",
        "sha256": file.sha256,
    }


def _records(schema: pa.Schema, file: DataFile) -> dict[str, Any]:
    name = file.name.partition(".")[0]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{file.n_rows:,} rows of the split {file.split}.",
        "field": [_field(name, file.name, field) for field in schema],
    }


def _field(records: str, file: str, field: pa.Field) -> dict[str, Any]:
    made: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{records}/{field.name}",
        "name": f"{records}/{field.name}",
    }
    inner, depth = field.type, 0
    while pa.types.is_list(inner):
        inner, depth = inner.value_type, depth + 1
    source = {"fileObject": {"@id": file}, "extract": {"column": field.name}}
    if pa.types.is_struct(inner):
        made["subField"] = list(_sub_fields(made["@id"], source, inner))
        return made | ({"isArray": True, "arrayShape": "-1"} if depth else {})
    made |= {"dataType": _type(inner), "source": source}
    return made | ({"isArray": True, "arrayShape": ",".join(["-1"] * depth)} if depth else {})


def _sub_fields(parent: str, source: dict[str, Any], kind: pa.StructType) -> Iterable[dict[str, Any]]:
    for place in range(kind.num_fields):
        child = kind.field(place)
        name = f"{parent}/{child.name}"
        told = {"@type": "cr:Field", "@id": name, "name": name, "dataType": _type(child.type)}
        yield told | {"source": {**source, "transform": {"jsonPath": child.name}}}


def _type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    return "sc:DateTime" if pa.types.is_timestamp(kind) else "sc:Text"
