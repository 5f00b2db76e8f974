"""`trl-rollouts`: scored samples for TRL's asynchronous distillation trainer, without a teacher's server.

Token-aligned: row i of `teacher_topk_*` is the distribution that token i was drawn from; k candidates and one place for
the token itself where it was none of them; −1 and −inf where there is nothing. `load.py` beside the data gives them to
`AsyncDistillationTrainer(rollout_worker=…)`. Source: `trl/experimental/async_distillation` of TRL 1.16.

    from load import OfflineRollouts
    trainer = AsyncDistillationTrainer(..., rollout_worker=OfflineRollouts("DIR"))
"""

from collections.abc import Mapping, Sequence
from typing import IO, Final

import numpy as np
import pyarrow as pa
from pydantic import Field

from app.exporters import chat, lists
from app.exporters.base import Binding, Counted, Format, FormatOptions, Summary
from app.exporters.parquet import SlicedShard
from app.exporters.sequences import check_signal, nested, sequences

_NAME: Final = "trl-rollouts"
_TURNS: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA: Final = pa.schema(
    [
        ("prompt", _TURNS),
        ("completion", _TURNS),
        ("input_ids", pa.list_(pa.int64())),
        ("completion_mask", pa.list_(pa.int8())),
        ("teacher_topk_ids", pa.list_(pa.list_(pa.int64()))),
        ("teacher_topk_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("teacher_id", pa.string()),
        ("prompt_id", pa.int64()),
        ("row_id", pa.string()),
    ]
)

LOAD: Final = '''\
"""Gives the rows of this folder to TRL's AsyncDistillationTrainer as its rollout worker. Needs trl and pyarrow."""

import queue
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from trl.experimental.async_distillation.async_rollout_worker import RolloutSample


def samples(folder, split="train"):
    """The rows of a split as RolloutSample, in order, one row group in memory at a time."""
    for path in sorted(Path(folder).glob(f"{split}-*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                yield RolloutSample(
                    prompt=row["prompt"],
                    completion=row["completion"],
                    input_ids=np.array(row["input_ids"], np.int64),
                    completion_mask=np.array(row["completion_mask"], np.int64),
                    teacher_topk_ids=np.array(row["teacher_topk_ids"], np.int64),
                    teacher_topk_logprobs=np.array(row["teacher_topk_logprobs"], np.float32),
                    model_version=0,
                    metrics={},
                    teacher_id=row["teacher_id"],
                    prompt_id=row["prompt_id"],
                )


class OfflineRollouts:
    """A rollout worker that reads instead of generating; its samples never grow stale."""

    def __init__(self, folder, split="train", epochs=1, queue_size=64):
        self.rollout_queue = queue.Queue(maxsize=queue_size)
        self._folder, self._split, self._epochs = folder, split, epochs
        self._version = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopped.set()

    def update_model_version(self, model_version):
        self._version = model_version

    def check_health(self, stale_after_s):
        """Nothing can go stale."""

    def _fill(self):
        for _ in range(self._epochs):
            for sample in samples(self._folder, self._split):
                sample.model_version = self._version
                while not self._stopped.is_set():
                    try:
                        self.rollout_queue.put(sample, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if self._stopped.is_set():
                    return
'''


class RolloutOptions(FormatOptions):
    top_k: int | None = Field(
        None, ge=1, le=1024, description="Candidates per position; default: all that are stored."
    )
    reasoning: chat.Reasoning = Field(
        "think",
        description="Where the trace stands in the text beside the tokens; the tokens have it anyway.",
    )


class RolloutExporter:
    suffix = ".parquet"
    needs_tokens = True

    def __init__(self, options: RolloutOptions) -> None:
        self._options = options
        self._k = options.top_k or 1

    def check(self, bindings: Sequence[Binding]) -> None:
        self._k = check_signal(bindings, self._options.top_k, _NAME)

    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, file: IO[bytes], split: str) -> SlicedShard:
        return SlicedShard(file, SCHEMA, self._rows, self._k + 1)

    def companions(self, summary: Summary) -> Mapping[str, bytes]:
        return {"load.py": LOAD.encode()}

    def _rows(self, batch: pa.RecordBatch, counted: Counted) -> pa.Table:
        found = sequences(batch, self._k, counted)
        kept = batch.take(pa.array(found.rows))
        messages = chat.chat(kept, self._options.reasoning)
        inside = (found.topk_ids == found.token_ids[:, None]).any(axis=1)
        own = found.drawn & ~inside & np.isfinite(found.sampled_logprob)
        ids = np.column_stack([found.topk_ids, np.where(own, found.token_ids, -1)])
        values = np.column_stack([found.topk_logprobs, np.where(own, found.sampled_logprob, -np.inf)])
        values = np.where(ids >= 0, values, -np.inf).astype(np.float32)
        n = found.lengths
        mask = found.spread(found.drawn.astype(np.int8), 0, ahead=0)
        return pa.Table.from_arrays(
            [
                _plain(chat.asked(messages)),
                _plain(chat.answered(messages)),
                lists.list_column(found.input_ids, n, SCHEMA.field("input_ids").type),
                lists.list_column(mask, n, SCHEMA.field("completion_mask").type),
                nested(found.spread(ids, -1, ahead=0), n, SCHEMA.field("teacher_topk_ids").type),
                nested(
                    found.spread(values, np.float32(-np.inf), ahead=0),
                    n,
                    SCHEMA.field("teacher_topk_logprobs").type,
                ),
                kept.column("teacher"),
                kept.column("prompt_number"),
                kept.column("row_id"),
            ],
            schema=SCHEMA,
        )


def _plain(turns: pa.Array) -> pa.Array:
    """Role and content alone."""
    flat = turns.flatten()
    made = pa.StructArray.from_arrays(
        [flat.field("role"), flat.field("content").fill_null("")], names=["role", "content"]
    )
    return lists.list_column(made, lists.lengths(turns), _TURNS)


_HOW_TO_LOAD: Final = """\
import sys

sys.path.insert(0, "DIR")
from load import OfflineRollouts

worker = OfflineRollouts("DIR")  # AsyncDistillationTrainer(rollout_worker=worker, ...)
"""

FORMAT = Format(
    "Scored samples for TRL's asynchronous distillation trainer, as Parquet with a loader.",
    RolloutOptions,
    RolloutExporter,
    load=_HOW_TO_LOAD,
)
