"""The embedded teacher, with its real model: characters of several tokens, and answers that end at a stop string."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from app.domain.sampling import SamplingParameters
from app.errors import MalformedAnswer
from app.teachers import embedded_model
from app.teachers.base import GenerateRequest, Generation, Teacher, TeacherSpec
from app.teachers.embedded import EmbeddedTeacher
from app.teachers.gguf_metadata import read_metadata
from app.teachers.llama_cpp import SLOTS
from app.teachers.llama_rows import placed, tokens_before
from app.teachers.pressure import Pressure
from tests.contract.stages import embedded, openai_llama_cpp

K = 5
TEXT = "a 😀 b END é"


@pytest.fixture(scope="module")
def spoken() -> Iterator[list[Generation]]:
    """The same text said whole, cut after 4 tokens (within the emoji), and stopped by strings."""
    with embedded() as stage:

        async def said(most: int | None, *stop: str) -> Generation:
            teacher = EmbeddedTeacher(stage.spec)
            request = GenerateRequest(
                messages=({"role": "user", "content": "Say it."},),
                sampling=SamplingParameters(temperature=0.8, max_tokens=most, seed=7, stop=stop or None),
                top_logprobs=K,
                response_schema={"const": TEXT},
                deadline_s=60,
            )
            (made,) = await teacher.generate(request)
            await teacher.aclose()
            return made

        async def all_of_it() -> list[Generation]:
            wanted = ((64,), (4,), (64, "b E"), (64, "é"))
            return [await said(*one) for one in wanted]

        yield asyncio.run(all_of_it())


def text_of(made: Generation) -> bytes:
    assert made.tokens is not None
    metadata = read_metadata(embedded_model.model_path())
    return b"".join(metadata.tokens[one] for one in made.tokens.token_ids if one not in metadata.control)


def test_every_token_of_a_character_has_its_logprobs(spoken: list[Generation]) -> None:
    whole = spoken[0]
    assert whole.tokens is not None
    assert text_of(whole).decode() == whole.answer
    assert len(whole.tokens) == whole.usage.completion_tokens
    assert np.isfinite(whole.tokens.sampled_logprob).all()
    assert (whole.tokens.topk_ids >= 0).all()
    mass = np.exp(whole.tokens.topk_logprobs.astype(np.float64)).sum(axis=1)
    assert ((mass > 0) & (mass < 1 + 1e-3)).all()


@pytest.mark.parametrize("which", range(1, 4))
def test_what_is_cut_short_begins_as_the_whole(spoken: list[Generation], which: int) -> None:
    whole, cut = spoken[0].tokens, spoken[which].tokens
    assert whole is not None
    assert cut is not None
    assert (cut.token_ids == whole.token_ids[: len(cut)]).all()
    assert np.allclose(cut.sampled_logprob, whole.sampled_logprob[: len(cut)], atol=0.1)
    assert np.allclose(cut.topk_logprobs, whole.topk_logprobs[: len(cut)], atol=0.1)


def test_a_limit_within_a_character_is_told(spoken: list[Generation]) -> None:
    made = spoken[1]
    assert made.tokens is not None
    assert (made.finish_reason, len(made.tokens)) == ("length", 4)
    assert text_of(made).decode("utf-8", "replace") == made.answer


@pytest.mark.parametrize(("which", "ends"), [(2, '"a 😀 '), (3, '"a 😀 b END ')])
def test_tokens_of_a_stop_string_are_left_out(spoken: list[Generation], which: int, ends: str) -> None:
    made = spoken[which]
    assert (made.finish_reason, made.answer) == ("stop", ends)
    assert ends.encode().startswith(text_of(made)), (
        "a token that goes on into the stop string is left out whole"
    )
    assert len(ends.encode()) - len(text_of(made)) <= 1


def test_a_row_asked_for_once_more_is_the_row(spoken: list[Generation]) -> None:
    """Of ordinary tokens the engine tells rows itself: they are what the second look finds."""
    whole = spoken[0].tokens
    assert whole is not None
    ids, prompt = whole.token_ids.tolist(), whole.prompt_ids.tolist()

    async def looked() -> list[float]:
        with embedded() as stage:
            teacher = EmbeddedTeacher(stage.spec)
            request = GenerateRequest(
                messages=(), sampling=SamplingParameters(), top_logprobs=K, deadline_s=60
            )
            await teacher._open()
            rows = [await teacher._row(request, [*prompt, *ids[:i]], ids[i]) for i in range(3)]
            await teacher.aclose()
            return [row["logprob"] for row in rows]

    assert np.allclose(asyncio.run(looked()), whole.sampled_logprob[:3], atol=0.1)


def test_rows_are_placed_by_the_bytes_of_tokens() -> None:
    # E2 80 80: the second 80 completes it, and the same id stands at the place before, which has no row.
    ids, texts = [1, 2, 2, 3], [b"\xe2", b"\x80", b"\x80", b"x"]
    rows = [{"id": 2, "n": 1}, {"id": 3, "n": 2}]
    assert placed(rows, ids, texts) == [None, None, rows[0], rows[1]]
    assert placed(rows[:1], ids, texts) == [None, None, rows[0], None]
    assert placed([{"id": 5}], [5, 6], [b"", b"\xf0\x9f"]) == [{"id": 5}, None]
    for wrong in ([{"id": 9}], [*rows, {"id": 4}]):
        with pytest.raises(MalformedAnswer, match=r"rows? of logprobs"):
            placed(wrong, ids, texts)


def test_the_cut_of_a_stop_string() -> None:
    assert tokens_before("END", [b"a", b" E", b"ND"]) == 1
    assert tokens_before("END", [b"a ", b"E", b"ND."]) == 1
    assert tokens_before(" END", [b"a", b" END"]) == 1
    assert tokens_before("é", [b"\xc3", b"\xa9"]) == 0
    for texts in ([], [b"x"]):
        with pytest.raises(MalformedAnswer, match="is not in what it generated"):
            tokens_before("END", texts)


def test_over_chat_the_columns_are_left_out_where_tokens_are_untold() -> None:
    """llama.cpp's chat names no token but those with a row: better none than some."""

    async def said(teacher: Teacher, text: str, *stop: str) -> Generation:
        request = GenerateRequest(
            messages=({"role": "user", "content": "Say it."},),
            sampling=SamplingParameters(max_tokens=32, stop=stop or None),
            top_logprobs=K,
            response_schema={"const": text},
            deadline_s=60,
        )
        (made,) = await teacher.generate(request)
        return made

    async def all_of_it() -> list[Generation]:
        with openai_llama_cpp() as stage:
            teacher = stage.teacher()
            await teacher.capabilities()
            texts = (("a 😀 b",), ("a b",), ("a b END", "END"), ("a 😀 END", "END"))
            made = [await said(teacher, *one) for one in texts]
            await teacher.aclose()
            return made

    emoji, plain, stopped, both = asyncio.run(all_of_it())
    assert emoji.answer == '"a 😀 b"'
    for made in (emoji, both):
        assert made.tokens is None
        assert "llama.cpp tells no row" in str((made.provider_extra or {})["token_columns"])
    for made in (plain, stopped):
        assert made.tokens is not None
        assert made.provider_extra is None or "token_columns" not in made.provider_extra


def test_samples_that_wait_are_told_at_once() -> None:
    """The engine's limit is found from it; what the engine itself tells comes too late, and never in full."""

    async def readings(teacher: EmbeddedTeacher) -> tuple[Pressure, Pressure]:
        request = GenerateRequest(
            messages=({"role": "user", "content": "Hi."},),
            sampling=SamplingParameters(temperature=1.0, max_tokens=1, seed=1),
            sample_indices=tuple(range(SLOTS + 3)),
            deadline_s=60,
        )
        call = asyncio.ensure_future(teacher.generate(request))
        await asyncio.sleep(0)  # it has begun, and nothing has answered
        during = await teacher.pressure()
        await call
        after = await teacher.pressure()
        assert during is not None
        assert after is not None
        return during, after

    async def run(spec: TeacherSpec) -> tuple[Pressure, Pressure]:
        teacher = EmbeddedTeacher(spec)
        await teacher.generate(
            GenerateRequest(
                ({"role": "user", "content": "Hi."},), SamplingParameters(max_tokens=1), deadline_s=60
            )
        )
        try:
            return await readings(teacher)
        finally:
            await teacher.aclose()

    with embedded() as stage:
        assert asyncio.run(run(stage.spec)) == (Pressure(SLOTS, 3), Pressure(0, 0))
