"""How many rows have which value, summed over batches and files: what the card and the manifest tell."""

from collections.abc import Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

Counts = dict[str, dict[str, int]]

COUNTED: Final = (
    "split",
    "job",
    "teacher",
    "teacher_license",
    "prompt_license",
    "prompt_source",
    "finish_reason",
    "reasoning_source",
)
"""Columns whose values are counted; null counts as ``""``."""

SUMMED: Final = ("prompt_tokens", "completion_tokens", "reasoning_tokens")
"""Columns that are summed, under `tokens`; a null adds nothing."""

_MOST = 1000
_OTHERS = "(others)"


def counts_of(batch: pa.RecordBatch) -> Counts:
    """Counts of one batch."""
    found: Counts = {}
    for name in COUNTED:
        values = pc.value_counts(batch.column(name))
        keys = values.field("values").fill_null("").to_pylist()
        found[name] = dict(zip(keys, values.field("counts").to_pylist(), strict=True))
    days = pc.value_counts(batch.column("generated_at").cast(pa.date32(), safe=False))
    names = days.field("values").cast(pa.string()).to_pylist()
    found["generated_on"] = dict(zip(names, days.field("counts").to_pylist(), strict=True))
    found["tokens"] = {name: pc.sum(batch.column(name)).as_py() or 0 for name in SUMMED}
    found["reasoning"] = {
        "present": batch.num_rows - batch.column("reasoning").null_count,
        "truncated": pc.sum(batch.column("reasoning_truncated")).as_py() or 0,
    }
    return found


def add(total: Counts, more: Mapping[str, Mapping[str, int]]) -> None:
    """Add `more` to `total`."""
    for name, values in more.items():
        into = total.setdefault(name, {})
        for value, count in values.items():
            into[value] = into.get(value, 0) + count


def in_order(counts: Counts) -> Counts:
    """The same in the order of the keys. Where a counted column has more than a thousand values, the rarer ones are
    summed as `(others)`."""
    return {
        name: _bounded(counts[name]) if name in COUNTED else dict(sorted(counts[name].items()))
        for name in sorted(counts)
    }


def _bounded(values: Mapping[str, int]) -> dict[str, int]:
    ranked = sorted(values.items(), key=lambda item: (item[0] == _OTHERS, -item[1], item[0]))
    rest = sum(count for value, count in ranked[_MOST:])
    kept = dict(sorted(ranked[:_MOST]))
    return kept | {_OTHERS: rest + kept.get(_OTHERS, 0)} if rest else kept
