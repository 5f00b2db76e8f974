"""Which tokens llama.cpp's server tells logprobs of, and which of them belong to the answer.

It keeps no row for a token after which the text ends inside a character (`process_token` in its server-context.cpp):
of the three tokens of an emoji only the last has one. Nor does it say so; the rows of an answer are just fewer than
its tokens. After a stop string it drops as many rows as the string has tokens by itself, which need not be as many as
the model wrote it with. So both are counted here, over the bytes of the tokens.
"""

from collections.abc import Sequence
from typing import Any

from app.errors import MalformedAnswer


def tokens_before(stop: str, texts: Sequence[bytes]) -> int:
    """How many tokens lie whole before the stop string that ended `texts`; the engine looks for it as this does."""
    whole, word = b"".join(texts), stop.encode()
    cut = whole.find(word, max(0, len(whole) - len(word) - len(texts[-1]))) if texts else -1
    if cut < 0:
        raise MalformedAnswer(f"llama.cpp stopped at {stop!r}, which is not in what it generated")
    end = 0
    for count, text in enumerate(texts):
        end += len(text)
        if end > cut:
            return count
    return len(texts)


def placed(
    rows: Sequence[dict[str, Any]], ids: Sequence[int], texts: Sequence[bytes]
) -> list[dict[str, Any] | None]:
    """The row of each token, None where the engine gave none. Raises `MalformedAnswer` where they do not fit."""
    found: list[dict[str, Any] | None] = [None] * len(ids)
    tail, left = b"", iter(rows)
    for place, text in enumerate(texts):
        tail = (tail + text)[-4:]
        if _ends_inside_a_character(tail):
            continue
        row = next(left, None)
        if row is None:
            break
        if row.get("id") != ids[place]:
            raise MalformedAnswer(
                f"llama.cpp's row of logprobs for token {place} is of {row.get('id')}, not of {ids[place]}"
            )
        found[place] = row
    if next(left, None) is not None:
        raise MalformedAnswer(
            f"llama.cpp answered {len(ids)} tokens and more rows of logprobs than they have"
        )
    return found


def _ends_inside_a_character(tail: bytes) -> bool:
    """The engine's own test (`validate_utf8`): a leading byte among the last ones whose character is not whole."""
    for back, byte in enumerate(reversed(tail), 1):
        needs = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 0
        if back < needs:
            return True
    return False
