"""Every answer of the service is what its OpenAPI description says: status, media type, shape of the JSON."""

import re
from typing import Any

import httpx
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_ROOT = "urn:openapi"


class Conformance:
    """A hook for `httpx`. Raises `AssertionError` for an answer that is not described."""

    def __init__(self, document: dict[str, Any]) -> None:
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(_ROOT, resource)
        self._routes = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path, operations)
            for path, operations in sorted(document["paths"].items(), key=lambda one: "{" in one[0])
        ]
        self._validators: dict[tuple[str, str, str, str], Draft202012Validator] = {}

    def __call__(self, response: httpx.Response) -> None:
        request = response.request
        for pattern, path, operations in self._routes:
            operation = operations.get(request.method.lower())
            if operation is not None and pattern.fullmatch(request.url.path):
                self._check(response, path, operation)
                return

    def _check(self, response: httpx.Response, path: str, operation: dict[str, Any]) -> None:
        where = f"{response.request.method} {response.request.url} → {response.status_code}"
        status = str(response.status_code)
        status = status if status in operation["responses"] else "default"
        if status == "default":
            assert not response.is_success, f"{where}: this status is not described"
        described = operation["responses"][status].get("content", {})
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if not described:
            assert status == "304" or not response.read(), f"{where}: an answer where none is described"
            return
        assert media_type in described, f"{where}: {media_type} is not among {sorted(described)}"
        if not media_type.endswith("json") or "schema" not in described[media_type]:
            return
        key = (path, response.request.method, status, media_type)
        if key not in self._validators:
            schema = _absolute(described[media_type]["schema"])
            self._validators[key] = Draft202012Validator(schema, registry=self._registry)
        response.read()
        for error in self._validators[key].iter_errors(response.json()):
            raise AssertionError(f"{where}: {error.json_path}: {error.message[:500]}")


def _absolute(schema: Any) -> Any:
    """With references that lead into the document from anywhere."""
    if isinstance(schema, list):
        return [_absolute(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"{_ROOT}{value}" if name == "$ref" and isinstance(value, str) else _absolute(value)
        for name, value in schema.items()
    }


_known: dict[str, Conformance] = {}


def conformance(app: FastAPI) -> Conformance:
    """All apps of a test run describe the same; building that takes a third of a second."""
    if app.version not in _known:
        _known[app.version] = Conformance(app.openapi())
    return _known[app.version]
