"""`distillkit`: soft labels for DistillKit (and open-instruct), in its compressed form or as plain lists.

Logits-aligned: row i of the signal is the distribution of token i + 1, unnormalised, at temperature 1. `compressed`
packs candidate ids with ceil(log2 V) bits, most significant first, and keeps the logprobs exactly in the chosen type;
`compression_config.yaml` beside the data is what DistillKit must be given, in either form. Source:
`distillkit/compression` at a61c2e7.

DistillKit multiplies its loss by the mask, so what stands at masked positions must give a number, too: there, each
candidate is another one of the last ids of the vocabulary, which models seldom expect.

DistillKit masks row i of the signal by `labels[i] >= 0`, unshifted, so `labels` mark the rows that have a signal:
the token before each one that is taught. Its hard-label loss shifts `labels` as usual; with `labels: tokens` they
are right for that loss, and the signal of the first token is not used.

    from datasets import load_dataset
    load_dataset("parquet", data_files="DIR/train-*.parquet")["train"].save_to_disk("prepared")
"""

from collections.abc import Mapping, Sequence
from typing import IO, Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from app.exporters import lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary, Unfit
from app.exporters.parquet import SlicedShard
from app.exporters.sequences import IGNORED, Sequences, check_signal, nested, sequences

_NAME: Final = "distillkit"
_FAR: Final = -100.0
"""Stands for −inf, which DistillKit turns into NaN: exp(−100) adds nothing to any sum."""
_LEFT: Final = 2.0**-20
"""Mass that is left to all other tokens. DistillKit takes log1p(−mass) in float32, and its own clamp at 1 − 1e-8
rounds to 1 there: a position whose candidates hold all mass would make the loss NaN (1 to 4 % of a small teacher's)."""

_IDS: Final = pa.list_(pa.uint64())
_BYTES: Final = pa.list_(pa.list_(pa.uint8()))
_COMMON: Final = [
    ("input_ids", _IDS),
    ("labels", pa.list_(pa.int64())),
    ("attention_mask", pa.list_(pa.int8())),
]
_RAW: Final = pa.schema(
    [
        *_COMMON,
        ("token_ids", pa.list_(pa.list_(pa.int64()))),
        ("top_values", pa.list_(pa.list_(pa.float32()))),
    ]
)
_COMPRESSED: Final = pa.schema([*_COMMON, ("compressed_logprobs", _BYTES), ("bytepacked_indices", _BYTES)])


class DistillKitOptions(FormatOptions):
    form: Literal["compressed", "raw"] = Field(
        "compressed", description="`compressed`: bytes that DistillKit unpacks; `raw`: lists of numbers."
    )
    logprobs: Literal["float16", "float32"] = Field(
        "float16", description="How the compressed form keeps logprobs; float16 is how they are stored."
    )
    labels: Literal["signal", "tokens"] = Field(
        "signal", description="What `labels` are right for: the distillation loss, or the hard-label loss."
    )
    top_k: int | None = Field(
        None, ge=1, le=1024, description="Candidates per position; default: all that are stored."
    )


class DistillKitExporter:
    suffix = ".parquet"
    needs_tokens = True

    def __init__(self, options: DistillKitOptions) -> None:
        self._options = options
        self._k = options.top_k or 1
        self._vocabulary: int | None = None

    def check(self, bindings: Sequence[Binding]) -> None:
        self._k = check_signal(bindings, self._options.top_k, _NAME)
        self._vocabulary = next((b.vocab_size for b in bindings if b.vocab_size), None)
        if self._vocabulary is None and self._options.form == "compressed" and bindings:
            raise Unfit(
                f"{_NAME}: the compressed form packs ids by the size of the vocabulary, which teacher "
                f"{bindings[0].teacher!r} does not tell: take `form: raw`"
            )

    def schema(self) -> pa.Schema:
        return _RAW if self._options.form == "raw" else _COMPRESSED

    def open(self, file: IO[bytes], split: str) -> SlicedShard:
        return SlicedShard(file, self.schema(), self._rows, self._k)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        if self._vocabulary is None:
            return {}
        return {"compression_config.yaml": self._config().encode()}

    def _config(self) -> str:
        return (
            "# DistillKit's `logprob_compressor`: it must be given as it stands.\n"
            f"d: {self._vocabulary}\nk: {self._k}\nexact_k: {self._k}\nexact_dtype: {self._options.logprobs}\n"
            "polynomial_terms: []\nterm_dtype: float32\nresidual_bins: []\n"
            "delta_encoding: false\nerror_diffusion: false\nnormalize_t: false\n"
        )

    def _rows(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        found = sequences(batch, self._k, counted)
        n = found.lengths
        there = found.topk_ids >= 0
        nowhere = self._nowhere()
        ids = found.spread(np.where(there, found.topk_ids, nowhere), nowhere, ahead=1)
        far = np.float32(_FAR)
        kind = np.dtype(np.float32 if self._options.form == "raw" else self._options.logprobs).newbyteorder(
            "<"
        )
        own = below_one(np.maximum(np.where(there, found.topk_logprobs, far), far), kind)
        values = found.spread(own, kind.type(far), ahead=1)
        columns = [
            lists.list_column(found.input_ids, n, _IDS),
            lists.list_column(self._labels(found), n, pa.list_(pa.int64())),
            lists.list_column(np.ones(int(n.sum()), np.int8), n, pa.list_(pa.int8())),
        ]
        if self._options.form == "raw":
            columns.append(nested(ids, n, _RAW.field("token_ids").type))
            columns.append(nested(values, n, _RAW.field("top_values").type))
        else:
            columns.append(nested(values.view(np.uint8), n, _BYTES))
            columns.append(nested(packed(ids, index_bits(self._vocabulary or 2)), n, _BYTES))
        return pa.Table.from_arrays(columns, schema=self.schema())

    def _nowhere(self) -> NDArray[np.int32]:
        """Ids [k] where there is no distribution, all different."""
        end = self._vocabulary or self._k
        return np.arange(max(0, end - self._k), max(0, end - self._k) + self._k, dtype=np.int32)

    def _labels(self, found: Sequences) -> NDArray[np.int32]:
        if self._options.labels == "tokens":
            return found.labels()
        marked = np.full(int(found.lengths.sum()), IGNORED, np.int32)
        before = found.places[found.drawn] - 1
        marked[before] = found.input_ids[before]
        return marked


def below_one(logprobs: NDArray[np.float32], kind: np.dtype[Any]) -> NDArray[Any]:
    """Logprobs [T, k] in `kind`, the likeliest candidate lowered where all together hold more than 1 − `_LEFT`."""
    made = logprobs.astype(kind)
    mass = np.exp(made.astype(np.float64)).sum(axis=1)
    full = np.flatnonzero(mass > 1 - _LEFT)
    if len(full):
        first = np.argmax(made[full], axis=1)
        likeliest = np.exp(made[full, first].astype(np.float64))
        wanted = np.log(np.maximum(likeliest - (mass[full] - (1 - _LEFT)), np.exp(_FAR)))
        lowered = wanted.astype(kind)
        above = lowered.astype(np.float64) > wanted
        made[full, first] = np.where(above, np.nextafter(lowered, kind.type(-np.inf)), lowered)
    return made


def index_bits(vocabulary: int) -> int:
    """Bits of an id in DistillKit's packing: ceil(log2 V)."""
    return max(1, (vocabulary - 1).bit_length())


def packed(ids: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """[S, k] ids → uint8 [S, ceil(k·bits / 8)]: one stream of bits a row, most significant first, filled with 0."""
    as_bytes = ids.astype(">u4").view(np.uint8).reshape(*ids.shape, 4)
    each = np.unpackbits(as_bytes, axis=-1)[..., 32 - bits :]
    return np.packbits(each.reshape(ids.shape[0], ids.shape[1] * bits), axis=-1)


_HOW_TO_LOAD: Final = """\
from datasets import load_dataset

rows = load_dataset("parquet", data_files="DIR/train-*.parquet")["train"]
rows.save_to_disk("prepared")  # compression_config.yaml is its `logprob_compressor`
"""

FORMAT = Format(
    "Soft labels for DistillKit, compressed or as lists, as Parquet.",
    DistillKitOptions,
    DistillKitExporter,
    load=_HOW_TO_LOAD,
)
