"""Pages by keyset: an opaque cursor names the last row that was seen, so that page N costs what page 1 costs."""

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

import orjson
from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidCursor

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows per page.")]
Cursor = Annotated[
    str | None, Query(max_length=500, description="`next_cursor` of the page before; absent: the first page.")
]


class Page(BaseModel, Generic[T]):
    """A page of a list."""

    model_config = ConfigDict(frozen=True)

    items: list[T]
    next_cursor: str | None = Field(description="Of the page after this one; null: this is the last.")


def page_of(name: str, found: Sequence[T], limit: int, place: Callable[[T], list[str | int]]) -> Page[T]:
    """A page from up to `limit` + 1 rows: one more than asked for tells that there is a next page."""
    more = len(found) > limit
    shown = list(found[:limit])
    return Page(items=shown, next_cursor=next_cursor(name, place(shown[-1])) if more else None)


def next_cursor(name: str, place: list[str | int]) -> str:
    """Names the last row that was shown of the list `name`."""
    return base64.urlsafe_b64encode(orjson.dumps([name, *place])).rstrip(b"=").decode()


def text_place(name: str, cursor: str | None) -> str | None:
    """The place in a list that is ordered by one text."""
    found = _decode(name, cursor, (str,))
    return None if found is None else str(found[0])


def int_places(name: str, cursor: str | None, count: int) -> tuple[int, ...] | None:
    """The place in a list that is ordered by `count` integers."""
    found = _decode(name, cursor, (int,) * count)
    return None if found is None else tuple(int(step) for step in found)


def _decode(name: str, cursor: str | None, types: tuple[type, ...]) -> list[str | int] | None:
    if cursor is None:
        return None
    try:
        value = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError as error:
        raise _invalid() from error
    if not isinstance(value, list) or len(value) != len(types) + 1 or value[0] != name:
        raise _invalid()
    place = value[1:]
    for step, wanted in zip(place, types, strict=True):
        if type(step) is not wanted:
            raise _invalid()
        if (isinstance(step, int) and not -(2**63) <= step < 2**63) or (
            isinstance(step, str) and "\x00" in step
        ):
            raise _invalid()
    return place


def _invalid() -> InvalidCursor:
    return InvalidCursor("this is not a cursor of this list: take `next_cursor` as it came, or leave it out")
