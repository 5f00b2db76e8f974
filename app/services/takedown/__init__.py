"""Takedowns: what was made from a source, of prompts or by a teacher is removed, on disk too; hashes stay.

views.py     ordered and read
running.py   the worker's side: prompts, then shard by shard rows, parts and segments, then exports
purging.py   nothing of the removed text is left in free pages
"""

from app.services.takedown.running import run_next
from app.services.takedown.views import (
    TakedownForecast,
    TakedownRequest,
    TakedownView,
    forecast,
    get,
    order,
    page,
)

__all__ = [
    "TakedownForecast",
    "TakedownRequest",
    "TakedownView",
    "forecast",
    "get",
    "order",
    "page",
    "run_next",
]
