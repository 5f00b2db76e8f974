"""`/docs` and `/redoc` without the internet: every script and style comes from this service.

The files are those that the package `fastapi-offline` carries (Swagger UI: Apache-2.0, ReDoc: MIT). Their pages are
ours: no inline script, so that the content security policy can forbid everything that is not from here.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_SWAGGER = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Retort: API</title>
<link rel="icon" href="docs/assets/favicon.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/start-swagger.js"></script>
</body>
</html>
"""

_REDOC = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Retort: API reference</title>
<link rel="icon" href="docs/assets/favicon.png">
<style>body { margin: 0; padding: 0 }</style>
</head>
<body>
<div id="redoc"></div>
<script src="docs/assets/redoc.standalone.js"></script>
<script src="docs/assets/start-redoc.js"></script>
</body>
</html>
"""

_START = {
    "start-swagger.js": """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: true,
  displayRequestDuration: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout"
});
""",
    "start-redoc.js": """Redoc.init("openapi.json", {
  hideDownloadButton: false,
  theme: { typography: { fontFamily: "system-ui, sans-serif", headings: { fontFamily: "system-ui, sans-serif" } } }
}, document.getElementById("redoc"));
""",
}

_TYPES = {"js": "text/javascript", "css": "text/css", "png": "image/png"}
_PACKAGED = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png")

# ReDoc's footer shows its maker's logo from their server: an empty image stands in its place.
_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
_NO_LOGO = b"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


@cache
def asset(name: str) -> bytes:
    """A file of the docs pages. Raises `KeyError` for a name that is none."""
    if name in _START:
        return _START[name].encode()
    if name not in _PACKAGED:
        raise KeyError(name)
    package = find_spec("fastapi_offline")  # found, not imported: only its files are wanted
    if package is None or package.origin is None:
        raise KeyError(name)
    return (Path(package.origin).parent / "static" / name).read_bytes().replace(_LOGO, _NO_LOGO)


@router.get("/docs")
def swagger_page() -> HTMLResponse:
    return HTMLResponse(_SWAGGER, headers={"Content-Security-Policy": _POLICY})


@router.get("/redoc")
def redoc_page() -> HTMLResponse:
    return HTMLResponse(_REDOC, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/assets/{name}")
def docs_asset(name: str) -> Response:
    try:
        content = asset(name)
    except KeyError:
        raise HTTPException(404, f"there is no file {name!r} here") from None
    media_type = _TYPES[name.rpartition(".")[2]]
    return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=3600"})
