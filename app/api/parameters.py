"""A query parameter that nobody reads is told to the caller: a misspelt filter must not find everything."""

from functools import cache
from typing import Any

from fastapi import FastAPI, Request

from app.errors import InvalidInput


def no_unknown_parameters(request: Request) -> None:
    """Raises `InvalidInput` for a query parameter that the operation does not describe."""
    route = request.scope.get("route")
    given = set(request.query_params)
    if not given or not getattr(route, "include_in_schema", False):
        return
    known = _known(request.app, str(getattr(route, "path", "")), request.method.lower())
    unknown = sorted(given - known)
    if unknown:
        takes = ", ".join(sorted(known)) or "none"
        raise InvalidInput(
            f"there is no query parameter {unknown[0]!r} here; there are: {takes}",
            errors=[
                {"detail": "there is no such parameter", "pointer": name, "in": "query"} for name in unknown
            ],
        )


@cache
def _known(app: FastAPI, path: str, method: str) -> frozenset[str]:
    operation: dict[str, Any] = app.openapi()["paths"].get(path, {}).get(method, {})
    return frozenset(one["name"] for one in operation.get("parameters", ()) if one["in"] == "query")
