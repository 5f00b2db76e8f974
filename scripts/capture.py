"""A real capture of the embedded teacher's token columns, for measuring storage: python scripts/capture.py FILE

The demo's prompts, temperature 0.8, 128 candidates a position, float32 as the engine told them, until there are 6,000
positions (a few minutes on two cores). FILE is Parquet in the columns of `app.storage.token_table`; seeds are fixed, so
that a capture on the same machine and engine comes out the same.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.domain.columns import TokenColumns  # noqa: E402
from app.domain.prompts import parse_line  # noqa: E402
from app.domain.sampling import SamplingParameters  # noqa: E402
from app.domain.teacher import TeacherSpec  # noqa: E402
from app.errors import MalformedAnswer  # noqa: E402
from app.storage.token_table import token_table  # noqa: E402
from app.teachers import embedded_model  # noqa: E402
from app.teachers.base import GenerateRequest  # noqa: E402
from app.teachers.embedded import EmbeddedTeacher  # noqa: E402

K = 128
POSITIONS = 6_000
AT_ONCE = 8


async def capture(positions: int) -> list[tuple[int, int, TokenColumns]]:
    """(prompt number, sample index, columns) of whole answers, at least so many positions in all."""
    teacher = EmbeddedTeacher(TeacherSpec("embedded", "embedded", embedded_model.MODEL))
    lines = (ROOT / "app" / "demo" / "prompts.jsonl").read_bytes().splitlines()
    prompts = [parse_line(line).turns()[-1]["content"] for line in lines]
    found: list[tuple[int, int, TokenColumns]] = []
    sampling = SamplingParameters(temperature=0.8, max_tokens=160, seed=1)

    async def one(number: int, index: int) -> tuple[int, int, TokenColumns] | None:
        message = {"role": "user", "content": f"{prompts[number]} Explain your answer in detail."}
        request = GenerateRequest((message,), sampling, (index,), top_logprobs=K, deadline_s=3600)  # type: ignore[arg-type]
        try:
            (made,) = await teacher.generate(request)
        except MalformedAnswer as error:  # the engine's own; a job would count it as a failed row
            print(f"prompt {number}, sample {index} is left out: {error.detail}", file=sys.stderr)
            return None
        assert made.tokens is not None
        return number, index, made.tokens

    wanted = [(number, index) for index in range(100) for number in range(len(prompts))]
    for start in range(0, len(wanted), AT_ONCE):
        made = await asyncio.gather(*(one(*place) for place in wanted[start : start + AT_ONCE]))
        found += [row for row in made if row is not None]
        done = sum(len(columns) for _, _, columns in found)
        print(f"{done:,} positions", file=sys.stderr)
        if done >= positions:
            break
    await teacher.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--positions", type=int, default=POSITIONS)
    given = parser.parse_args()
    embedded_model.fetch()
    rows = asyncio.run(capture(given.positions))
    pq.write_table(token_table(rows), given.file, compression="zstd")
    print(f"{sum(len(row[2]) for row in rows):,} positions of {len(rows)} answers in {given.file}")


if __name__ == "__main__":
    main()
