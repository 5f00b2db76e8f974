"""Which code made a row: kept with every job and every export."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def code_version() -> str:
    """The installed version of this package."""
    try:
        return version("retort")
    except PackageNotFoundError:
        return "0+unknown"
