"""The contenders, in the order in which they run."""

from tests.bench.contenders.base import Contender
from tests.bench.contenders.retort import COMPACT, EMBEDDED, SCALED, Retort
from tests.bench.contenders.scripts import AIOHTTP, CURATOR, DISTILABEL, HTTPX, ROUTES

LIMIT = AIOHTTP.name
WRITER = "pyarrow"
LIMITS = (LIMIT, WRITER, ROUTES[0].name)
"""What ratios are against: the bare aiohttp client, for exports the bare pyarrow writer, for routes the one by chat."""

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (AIOHTTP, HTTPX, EMBEDDED, SCALED, COMPACT, CURATOR, DISTILABEL)
}
TITLES = {name: contender.title for name, contender in CONTENDERS.items()} | {
    WRITER: "bare pyarrow writer",
    **{route.name: route.title for route in ROUTES},
}
SERVICES: dict[str, Retort] = {service.name: service for service in (EMBEDDED, SCALED)}
