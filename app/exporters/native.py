"""`parquet`: the native rows, token columns included, flat and token-aligned. Nothing is lost in this format.

    from datasets import load_dataset
    rows = load_dataset("parquet", data_files="DIR/*.parquet")["train"]
    ids = rows[0]["topk_ids"]        # flat: position by position, `lp_k` candidates each, likeliest first

`input_ids` is the prompt's ids and then the completion's; row i of the signal belongs to token `lp_first` + i and is
the distribution that it was drawn from: natural logarithms, unnormalised over the candidates kept, at temperature 1.
`loss_mask` is 1 where a token was drawn, 0 for the prompt and for tokens that were put there.
"""

from collections.abc import Mapping, Sequence
from typing import IO, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from app.exporters import batch as columns
from app.exporters import lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.parquet import ParquetShard

_SIGNAL: Final[dict[str, pa.DataType]] = {
    "input_ids": pa.list_(pa.int32()),
    "loss_mask": pa.list_(pa.int8()),
    "lp_first": pa.int32(),
    "lp_count": pa.int32(),
    "lp_k": pa.int16(),
    "topk_ids": pa.list_(pa.int32()),
    "topk_logprobs": pa.list_(pa.float32()),
    "sampled_logprob": pa.list_(pa.float32()),
    "sampled_rank": pa.list_(pa.int32()),
    "tail_logmass": pa.list_(pa.float32()),
    "lp_capture": pa.string(),
    "lp_mode": pa.string(),
    "lp_temperature": pa.float32(),
    "lp_dtype": pa.string(),
}
SCHEMA: Final = pa.schema([*columns.TEXT, *_SIGNAL.items()])
REPEATED: Final = (
    "split",
    "reasoning_source",
    "finish_reason",
    "job",
    "teacher",
    "teacher_model",
    "teacher_revision",
    "teacher_access_route",
    "teacher_license",
    "teacher_terms",
    "prompt_license",
    "prompt_source",
    "prompt_set",
    "sampling_json",
    "engine",
    "tokenizer_sha256",
    "chat_template_sha256",
    "lp_capture",
    "lp_mode",
    "lp_dtype",
)


class NativeOptions(FormatOptions):
    compression_level: int = Field(3, ge=1, le=19, description="Of zstd.")


class NativeExporter:
    suffix = ".parquet"
    needs_tokens = True

    def __init__(self, options: NativeOptions) -> None:
        self._level = options.compression_level

    def check(self, bindings: Sequence[Binding]) -> None:
        """Any row has a place here: one without tokens has nulls in the signal columns."""

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> ParquetShard:
        return ParquetShard(file, SCHEMA, native_rows, REPEATED, self._level)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {}


def native_rows(batch: pa.RecordBatch, counted: Counted) -> pa.Table:
    """A batch as rows of `SCHEMA`."""
    prompt, token = batch.column("prompt_ids"), batch.column("token_ids")
    valid = lists.validity(token)
    n_prompt, n_token = lists.lengths(prompt), lists.lengths(token)
    both = n_prompt + n_token
    ids = lists.joined(lists.flat(prompt), n_prompt, lists.flat(token), n_token)
    unmasked = np.zeros(int(n_prompt.sum()), np.int8)
    mask = lists.joined(unmasked, n_prompt, lists.flat(batch.column("sampled")).astype(np.int8), n_token)
    there = pa.array(~valid)
    made = {
        "input_ids": lists.list_column(ids, both, _SIGNAL["input_ids"], valid),
        "loss_mask": lists.list_column(mask, both, _SIGNAL["loss_mask"], valid),
        "lp_first": pa.array(n_prompt.astype(np.int32), mask=~valid),
        "lp_count": pa.array(n_token.astype(np.int32), mask=~valid),
        "lp_capture": _constant("sample", there),
        "lp_mode": _constant("raw_logprobs", there),
        "lp_temperature": _constant(np.float32(1.0), there),
    }
    arrays = [made[name] if name in made else batch.column(name) for name in SCHEMA.names]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _constant(value: object, missing: pa.Array) -> pa.Array:
    """`value` in every row that is not `missing`."""
    return pa.array([value, None]).take(missing.cast(pa.int8()))


_HOW_TO_LOAD: Final = """\
from datasets import load_dataset

rows = load_dataset("parquet", data_files="DIR/train-*.parquet")["train"]
"""

FORMAT = Format(
    "Every column there is, token ids and logprobs included, as Parquet.",
    NativeOptions,
    NativeExporter,
    load=_HOW_TO_LOAD,
)
