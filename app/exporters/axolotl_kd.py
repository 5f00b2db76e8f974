"""`axolotl-kd`: rows that Axolotl's distillation plugin takes as they are, tokens and candidates prepared.

`input_ids`, `attention_mask`, `labels`; and, logits-aligned (row i speaks of token i + 1), `target_token_ids`,
`target_logprobs` (renormalised over the candidates) and `target_mask`, 1 where `labels[i + 1]` is taught.
`axolotl.yaml` beside the data holds the lines that belong to it. Source: `axolotl/integrations/kd` of Axolotl 0.19.

    from datasets import load_dataset
    rows = load_dataset("parquet", data_files="DIR/train-*.parquet")["train"]
"""

from collections.abc import Mapping, Sequence
from typing import IO, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from app.exporters import lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.parquet import SlicedShard
from app.exporters.sequences import check_signal, nested, renormalised, sequences

_NAME: Final = "axolotl-kd"
_FAR: Final = -1e9  # Axolotl's own filler: it is masked, and must be finite

SCHEMA: Final = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int32())),
        ("target_token_ids", pa.list_(pa.list_(pa.int32()))),
        ("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)

_CONFIG = """\
# What this data asks of Axolotl; the rest of your configuration stands beside it.
plugins:
  - axolotl.integrations.kd.KDPlugin
kd_trainer: true
kd_temperature: 1.0        # the logprobs were taken at 1
kd_normalize_topk: true    # they are renormalised over the candidates: the student's must be, too
kd_alpha: 0.9
kd_ce_alpha: 0.1
datasets:
  - path: parquet
    data_files: [{files}]
    split: train
    type: completion       # not used: the rows are tokenised
remove_unused_columns: false
"""


class AxolotlOptions(FormatOptions):
    top_k: int | None = Field(
        None, ge=1, le=1024, description="Candidates per position; default: all that are stored."
    )


class AxolotlExporter:
    suffix = ".parquet"
    needs_tokens = True

    def __init__(self, options: AxolotlOptions) -> None:
        self._asked = options.top_k
        self._k = options.top_k or 1

    def check(self, bindings: Sequence[Binding]) -> None:
        self._k = check_signal(bindings, self._asked, _NAME)

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> SlicedShard:
        return SlicedShard(file, SCHEMA, self._rows, self._k)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        train = ", ".join(file.name for file in summary.files if file.split == "train")
        return {"axolotl.yaml": _CONFIG.format(files=train).encode()}

    def _rows(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        found = sequences(batch, self._k, counted)
        there = (found.topk_ids >= 0) & found.drawn[:, None]
        logprobs = renormalised(np.where(there, found.topk_logprobs, -np.inf).astype(np.float32))
        ids = found.spread(np.where(there, found.topk_ids, 0), 0, ahead=1)
        values = found.spread(np.where(there, logprobs, _FAR).astype(np.float32), np.float32(_FAR), ahead=1)
        mask = found.spread(there.astype(np.int8), 0, ahead=1)
        n = found.lengths
        return pa.Table.from_arrays(
            [
                lists.list_column(found.input_ids, n, SCHEMA.field("input_ids").type),
                lists.list_column(np.ones(int(n.sum()), np.int8), n, SCHEMA.field("attention_mask").type),
                lists.list_column(found.labels(), n, SCHEMA.field("labels").type),
                nested(ids, n, SCHEMA.field("target_token_ids").type),
                nested(values, n, SCHEMA.field("target_logprobs").type),
                nested(mask, n, SCHEMA.field("target_mask").type),
            ],
            schema=SCHEMA,
        )


_HOW_TO_LOAD: Final = """\
from datasets import load_dataset

rows = load_dataset("parquet", data_files="DIR/train-*.parquet")["train"]  # axolotl.yaml has the rest
"""

FORMAT = Format(
    "Soft labels for Axolotl's distillation plugin, tokens prepared, as Parquet.",
    AxolotlOptions,
    AxolotlExporter,
    load=_HOW_TO_LOAD,
)
