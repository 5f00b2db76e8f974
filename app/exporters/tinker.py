"""`tinker`: soft labels as Tinker's datums: the model's input, target tokens and their weights, k for each position.

Logits-aligned with respect to `model_input`, which is the sequence without its last token: row i of `target_tokens`
are the candidates for token i + 1, and `weights` their probabilities, renormalised over the candidates; 0 where nothing
is taught. `load.py` beside the data makes `tinker.Datum`s. Source: `tinker.types` of tinker 0.38.

    from load import datums
    batch = list(datums("DIR"))
"""

from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from app.exporters import lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.parquet import SlicedShard
from app.exporters.sequences import Sequences, check_signal, nested, renormalised, sequences

_NAME: Final = "tinker"
SCHEMA: Final = pa.schema(
    [
        ("row_id", pa.string()),
        ("model_input", pa.list_(pa.int64())),
        ("target_tokens", pa.list_(pa.list_(pa.int64()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
    ]
)

LOAD: Final = '''\
"""The rows of this folder as tinker.Datum. Needs tinker and pyarrow."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tinker


def datums(folder, split="train"):
    """In order; `target_tokens` int64 [N, K], `weights` float32 [N, K]."""
    for path in sorted(Path(folder).glob(f"{split}-*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield tinker.Datum(
                    model_input=tinker.ModelInput.from_ints(row["model_input"]),
                    loss_fn_inputs={
                        "target_tokens": np.array(row["target_tokens"], np.int64),
                        "weights": np.array(row["weights"], np.float32),
                    },
                )
'''


class TinkerOptions(FormatOptions):
    top_k: int | None = Field(
        None, ge=1, le=1024, description="Candidates per position; default: all that are stored."
    )


class TinkerExporter:
    suffix = ".parquet"
    needs_tokens = True

    def __init__(self, options: TinkerOptions) -> None:
        self._asked = options.top_k
        self._k = options.top_k or 1

    def check(self, bindings: Sequence[Binding]) -> None:
        self._k = check_signal(bindings, self._asked, _NAME)

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> SlicedShard:
        return SlicedShard(file, SCHEMA, self._rows, self._k)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {"load.py": LOAD.encode()}

    def _rows(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        found = sequences(batch, self._k, counted)
        there = (found.topk_ids >= 0) & found.drawn[:, None]
        logprobs = renormalised(np.where(there, found.topk_logprobs, -np.inf).astype(np.float32))
        weights = np.where(there, np.exp(logprobs), 0.0).astype(np.float32)
        ids = np.where(there, found.topk_ids, 0)
        n = found.lengths - 1
        return pa.Table.from_arrays(
            [
                batch.column("row_id").take(pa.array(found.rows)),
                lists.list_column(_shorter(found, found.input_ids), n, SCHEMA.field("model_input").type),
                nested(_shorter(found, found.spread(ids, 0, 1)), n, SCHEMA.field("target_tokens").type),
                nested(
                    _shorter(found, found.spread(weights, np.float32(0), 1)), n, SCHEMA.field("weights").type
                ),
            ],
            schema=SCHEMA,
        )


def _shorter(found: Sequences, values: NDArray[Any]) -> NDArray[Any]:
    """Every sequence without its last position. [S, …] → [S − R, …]"""
    kept = np.ones(len(values), np.bool_)
    kept[lists.offsets_of(found.lengths)[1:] - 1] = False
    return values[kept]


_HOW_TO_LOAD: Final = """\
import sys

sys.path.insert(0, "DIR")
from load import datums

batch = list(datums("DIR"))
"""

FORMAT = Format(
    "Soft labels as Tinker's datums, as Parquet with a loader.",
    TinkerOptions,
    TinkerExporter,
    load=_HOW_TO_LOAD,
)
