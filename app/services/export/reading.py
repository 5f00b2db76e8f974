"""The selected rows as batches: page after page by keyset, each in a transaction of its own, in bounded memory.

The order is (job, stage, prompt number, teacher's position, sample index): it does not depend on who reads, in which
pages, or where a reader began.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from app.db import export_rows as rows
from app.db.export_rows import Columns, Wanted
from app.db.session import reading
from app.domain.splits import SPLITS, Split
from app.exporters import batch as columns
from app.services.export.columns import text_batch, text_sizes
from app.services.export.facts import JobFacts, StageFacts
from app.services.export.prompts import prompts_of
from app.services.export.spec import Selection
from app.services.export.tokens import Tokens, token_sizes
from app.storage.places import Storage

_PAGE_BYTES = 16 * 1024 * 1024
_PAGE_ROWS = 8192

# (job, position of the stage, prompt number, teacher, sample index): tuples compare as rows follow one another.
Place = tuple[str, int, int, int, int]
START: Place = ("", 0, -1, 0, 0)


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive rows. `sizes`: bytes that each takes, roughly. `seen`: rows looked at, also those left out."""

    table: pa.Table
    sizes: NDArray[np.int64]
    seen: int


@dataclass(frozen=True, slots=True)
class Source:
    """All that decides which rows there are, and in which columns."""

    database: Engine
    storage: Storage
    jobs: Sequence[JobFacts]
    selection: Selection
    split: Split
    watermark: float
    with_tokens: bool

    def pages(self, done: Mapping[str, Place]) -> Iterator[Page]:
        """The rows in order, of each split those behind its place in `done`."""
        tokens = Tokens(self.storage)
        places = [done.get(name, START) for name in self.split.names]
        after = min(places)
        try:
            for job in self.jobs:
                for stage in job.stages:
                    if job.lanes and (job.id, stage.position) >= after[:2]:
                        begin = after[2:] if (job.id, stage.position) == after[:2] else rows.FIRST
                        # Where all splits begin at once, SQL has left out what is done.
                        skip = done if any(place != after for place in places) else {}
                        yield from self._stage(job, stage, begin, skip, tokens)
        finally:
            tokens.close()

    def _stage(
        self,
        job: JobFacts,
        stage: StageFacts,
        after: rows.Place,
        done: Mapping[str, Place],
        tokens: Tokens,
    ) -> Iterator[Page]:
        query = rows.compiled(
            self.database.dialect, job.id, job.prompt_set, stage.position, self._wanted(job), _PAGE_ROWS
        )
        width = 17 + 8 * stage.top_logprobs if self.with_tokens else 0
        while True:
            with reading(self.database) as connection:
                found = rows.page(connection, query, after, _PAGE_BYTES, width)
                if not found["prompt_number"]:
                    return
                page = self._page(connection, job, stage, found, done, tokens)
            after = (found["prompt_number"][-1], found["teacher"][-1], found["sample_index"][-1])
            del found  # some ten thousand values, while the page is written
            yield page

    def _page(
        self,
        connection: Connection,
        job: JobFacts,
        stage: StageFacts,
        found: Columns,
        done: Mapping[str, Place],
        tokens: Tokens,
    ) -> Page:
        seen = len(found["prompt_number"])
        keep = partial(_behind, done, (job.id, stage.position)) if done else None
        prompts = prompts_of(found, self.split, self.selection.metadata, keep)
        if not prompts.of_row:
            return Page(columns.schema(self.with_tokens).empty_table(), np.zeros(0, np.int64), seen)
        batch = text_batch(prompts, job, stage)
        sizes = text_sizes(batch, prompts.rows)
        if self.with_tokens:
            arrays = tokens.columns(connection, prompts.rows)
            sizes = sizes + token_sizes(arrays)
            return Page(
                pa.Table.from_arrays([*batch.columns, *arrays], schema=columns.schema(True)), sizes, seen
            )
        return Page(pa.Table.from_batches([batch]), sizes, seen)

    def _wanted(self, job: JobFacts) -> Wanted:
        chosen = self.selection
        return Wanted(
            before=self.watermark,
            lanes=() if job.all_lanes else tuple(lane.position for lane in job.lanes),
            prompt_licenses=chosen.prompt_licenses,
            teacher_licenses=chosen.teacher_licenses,
            finish_reasons=chosen.finish_reasons,
            reasoning=chosen.reasoning,
            truncated=chosen.reasoning_truncated,
        )


def _behind(done: Mapping[str, Place], stage: tuple[str, int], row: rows.Place, split: int) -> bool:
    """Whether no finished file of its split has the row."""
    return (*stage, *row) > done.get(SPLITS[split], START)
