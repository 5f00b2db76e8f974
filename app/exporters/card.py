"""`README.md` beside the data: a dataset card as the Hugging Face Hub reads it, made of the summary alone.

Front matter: https://huggingface.co/docs/hub/datasets-cards and its `dataset_info`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import yaml

from app.exporters.base import DataFile, Format, Summary

NAME: Final = "README.md"

# Identifiers that the Hub knows; everything else is `other` with a name.
_HUB_LICENSES: Final = frozenset(
    (
        "apache-2.0",
        "mit",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-3.0",
        "cc-by-sa-4.0",
        "cc-by-sa-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-4.0",
        "odc-by",
        "odbl",
        "pddl",
        "bsd-3-clause",
        "bsd-2-clause",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "mpl-2.0",
        "unlicense",
    )
)
_HUB_NAMES: Final = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}
_NO_ID: Final = re.compile(r"[^a-z0-9.]+")
_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)


def card(summary: Summary, format_: Format) -> bytes:
    """The card, UTF-8."""
    front = yaml.safe_dump(front_matter(summary), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{front}---\n\n{_text(summary, format_)}".encode()


def front_matter(summary: Summary) -> dict[str, Any]:
    """What programs read of the card."""
    made: dict[str, Any] = {
        "pretty_name": summary.name,
        **_license(summary),
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "tags": ["synthetic", "distillation", "retort", f"format:{summary.format}"],
        "task_categories": ["text-generation"],
        "size_categories": [_size(summary.n_rows)],
        "configs": [{"config_name": "default", "data_files": _data_files(summary)}],
    }
    info: dict[str, Any] = {"config_name": "default"}
    if _parquet(summary):
        info["features"] = [_feature(field.name, field.type) for field in summary.schema]
    info["splits"] = [
        {
            "name": split,
            "num_bytes": sum(file.n_bytes for file in files),
            "num_examples": sum(f.n_rows for f in files),
        }
        for split, files in _by_split(summary)
    ]
    info["download_size"] = sum(file.n_bytes for file in summary.files)
    info["dataset_size"] = info["download_size"]
    return {**made, "dataset_info": info}


def _license(summary: Summary) -> dict[str, str]:
    told = summary.notice.license.license if summary.notice else "other"
    known = _HUB_NAMES.get(told.lower(), told.lower())
    if known in _HUB_LICENSES:
        return {"license": known}
    # The Hub wants an id for a name; what it stands for is in the text.
    name = "see-student-notice" if told == "other" else _NO_ID.sub("-", told.lower()).strip("-")
    return {"license": "other", "license_name": name}


def _size(n_rows: int) -> str:
    return next((word for most, word in _SIZES if n_rows < most), "100M<n<1B")


def _by_split(summary: Summary) -> Iterable[tuple[str, list[DataFile]]]:
    for split in summary.splits:
        yield split, [file for file in summary.files if file.split == split]


def _data_files(summary: Summary) -> list[dict[str, str]]:
    suffix = summary.files[0].name.rpartition(".")[2] if summary.files else "parquet"
    return [{"split": split, "path": f"{split}-*.{suffix}"} for split, _ in _by_split(summary)]


def _parquet(summary: Summary) -> bool:
    return all(file.name.endswith(".parquet") for file in summary.files)


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    return {"name": name, **_kind(kind)}


def _kind(kind: pa.DataType) -> dict[str, Any]:
    """A column's type in the notation of `dataset_info`."""
    if pa.types.is_list(kind):
        inner = _kind(kind.value_type)
        return {"list": inner.get("dtype") or inner.get("struct") or inner}
    if pa.types.is_struct(kind):
        return {"struct": [_feature(kind.field(i).name, kind.field(i).type) for i in range(kind.num_fields)]}
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind))}


# -- for people ----------------------------------------------------------------------------------------------------


def _text(summary: Summary, format_: Format) -> str:
    parts = [
        f"# {summary.name}",
        _opening(summary, format_),
        _table(("split", "rows"), [(split, f"{rows:,}") for split, rows in summary.splits.items()]),
        "## Loading it",
        f"```python\n{format_.load.strip()}\n```" if format_.load else "",
        "## Teachers",
        _teachers(summary),
        "## Prompts",
        _counts("licence of the prompts", summary.counts.get("prompt_license", {})),
        _counts("source of the prompts", summary.counts.get("prompt_source", {}), most=20),
        "## How the rows were made",
        *_jobs(summary),
        _counts("finish reason", summary.counts.get("finish_reason", {})),
        _reasoning(summary),
        "## What was selected, and what was left out",
        _selection(summary),
        "## Licence and duties",
        _duties(summary),
        "## Compute",
        *_compute(summary),
        "## Checking it",
        _CHECKING,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_CHECKING: Final = (
    "`manifest.json` names every file with its SHA-256, the jobs, teachers, terms and the decision that let this "
    "data be made; `croissant.json` describes it for programs. `retort verify DIR` checks all of it, offline."
)
_DEPTH: Final = (
    "Generation depth: 0 for a teacher that is not known to have been trained on such data; otherwise one more than "
    "the deepest rows that it was trained on."
)


def _opening(summary: Summary, format_: Format) -> str:
    return (
        "Machine-made: teachers answered prompts, and Retort kept what they said, "
        f"with its origin. {summary.n_rows:,} rows, format `{summary.format}`: {format_.summary}"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines) if len(lines) > 2 else ""


def _cell(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _counts(title: str, counts: Mapping[str, int], most: int = 50) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name or "(none)", f"{count:,}") for name, count in ranked[:most]]
    if len(ranked) > most:
        rows.append((f"({len(ranked) - most:,} more)", f"{sum(count for _, count in ranked[most:]):,}"))
    return _table((title, "rows"), rows)


def _teachers(summary: Summary) -> str:
    """A line for each thing that a teacher was: what was told of it may have changed between two jobs."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for job in summary.jobs:
        for teacher in _dicts(job.get("teachers")):
            told = (
                str(teacher["name"]),
                str(teacher["model"]),
                str(teacher.get("revision") or "not told"),
                str(teacher["access_route"]),
                str(teacher.get("license") or "not told"),
                str(teacher.get("terms") or "by model and route"),
                str(teacher.get("generation_depth", 0)),
            )
            found.setdefault(told, []).append(job)
    named = Counter(told[0] for told in found)
    table = _table(
        ("teacher", "model", "revision", "route", "licence", "terms", "generation depth", "rows"),
        [(*told, _rows_of(summary, told[0], found[told], named[told[0]])) for told in sorted(found)],
    )
    return f"{table}\n\n{_DEPTH}"


def _rows_of(summary: Summary, teacher: str, jobs: Sequence[Mapping[str, Any]], lines: int) -> str:
    """How many rows a teacher made in these jobs, of the `lines` that it has in the table."""
    if lines == 1:
        return f"{summary.counts.get('teacher', {}).get(teacher, 0):,}"
    if any(len(_dicts(job.get("teachers"))) > 1 for job in jobs):
        return "not counted apart"
    by_job = summary.counts.get("job", {})
    return f"{sum(by_job.get(str(job['id']), 0) for job in jobs):,}"


def _jobs(summary: Summary) -> Iterable[str]:
    for job in summary.jobs:
        lines = [f"Job `{job['id']}`, code version {job['code_version']}:"]
        for stage in _dicts(job.get("stages")):
            sampling = stage.get("sampling")
            given = sampling.items() if isinstance(sampling, dict) else ()
            told = ", ".join(f"{name} {value}" for name, value in given if value is not None)
            lines.append(
                f"- {stage['name']}: {stage['n']} sample(s) a prompt, {told}; "
                f"{stage['top_logprobs']} candidates a position"
                + ("; traces were elicited" if stage.get("elicit") else "")
            )
        yield "\n".join(lines)


def _reasoning(summary: Summary) -> str:
    found = summary.counts.get("reasoning", {})
    if not found.get("present"):
        return "No row has a reasoning trace."
    sources = {name: n for name, n in summary.counts.get("reasoning_source", {}).items() if name}
    told = ", ".join(f"{n:,} {name}" for name, n in sorted(sources.items()))
    cut = found.get("truncated", 0)
    return f"{found['present']:,} rows have a reasoning trace ({told}); {cut:,} traces never closed."


def _selection(summary: Summary) -> str:
    filters = {
        name: value for name, value in summary.selection.items() if value not in (None, [], (), "", {})
    }
    lines = [f"- {name}: `{value}`" for name, value in filters.items()]
    if summary.split:
        lines.append(f"- split by a hash of the prompt: `{summary.split}`")
    for title, name in (
        ("rows that the format has no place for", "dropped"),
        ("rows left out by policy", "left_out"),
    ):
        for reason, count in summary.counts.get(name, {}).items():
            lines.append(f"- {title}: {count:,}, {reason}")
    return "\n".join(lines)


def _duties(summary: Summary) -> str:
    if summary.notice is None:
        return ""
    licence = summary.notice.license
    told = f"The data: `{licence.license}`." if licence.license != "other" else "The data, part by part:"
    lines = [told, *(f"- {key}: `{expression}`" for key, expression in licence.by_part.items())]
    obligations = [f"- {o.text} ({o.source})" for o in summary.notice.permissions.obligations]
    if summary.notice.required_name_prefix:
        obligations.insert(0, f"- a student's name begins with “{summary.notice.required_name_prefix}”")
    use = ", ".join(name for name, meant in summary.intended_use.items() if meant) or "nothing in particular"
    closing = (
        f"Declared use: {use}. `STUDENT_NOTICE.md` says what a student that is trained on this must carry."
    )
    return "\n".join([*lines, *(["", "What it asks:", *obligations] if obligations else []), "", closing])


def _compute(summary: Summary) -> Iterable[str]:
    tokens = summary.counts.get("tokens", {})
    yield (
        "In the rows that are here: "
        f"{tokens.get('prompt_tokens', 0):,} prompt and {tokens.get('completion_tokens', 0):,} completion tokens, "
        "as far as teachers told them. For the whole jobs, failed and repeated calls included:"
    )
    names = ("completed", "failed", "calls", "retries", "prompt_tokens", "completion_tokens")
    rows = []
    for job in summary.jobs:
        totals = job.get("totals")
        found = totals if isinstance(totals, dict) else {}
        rows.append([str(job["id"]), *(f"{found.get(name, 0):,}" for name in names)])
    yield _table(("job", *(name.replace("_", " ") for name in names)), rows)
    yield "Energy was not measured."


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
