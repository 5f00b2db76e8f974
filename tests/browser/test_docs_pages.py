"""/docs and /redoc in a real browser that reaches nothing but this machine."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.session import connect
from app.services.bootstrap import ensure_first_project
from app.settings import Settings
from tests.browser.chromium import Page, page
from tests.integration.api.server import Server, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

# Where pictures are kept for a person to look at; else they go with the test.
PICTURES = os.environ.get("RETORT_TEST_PICTURES")


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    engine = connect(sqlite_url)
    ensure_first_project(engine, settings.key_file, None)
    engine.dispose()
    with serving(settings, tmp_path, settings.key_file.read_text().strip()) as made:
        yield made


@pytest.fixture
def operations(server: Server) -> list[dict[str, Any]]:
    document = server.client.get("/openapi.json").json()
    return [operation for path in document["paths"].values() for operation in path.values()]


def check(opened: Page, origin: str) -> None:
    """Everything came from the service, and nothing was refused or broke."""
    elsewhere = [url for url in opened.requests if not url.startswith((origin, "data:", "blob:"))]
    assert elsewhere == []
    assert opened.problems == []


async def picture(opened: Page, name: str, tmp_path: Path) -> None:
    folder = Path(PICTURES) if PICTURES else tmp_path
    await opened.screenshot(folder / f"{name}.png")


def test_swagger_lists_every_operation_and_sends_a_request(
    server: Server, operations: list[dict[str, Any]], tmp_path: Path
) -> None:
    async def look() -> None:
        async with page() as opened:
            await opened.open(f"{origin}/docs")
            await opened.until(f"document.querySelectorAll('.opblock').length >= {len(operations)}")
            text = await opened.text()
            missing = [one["summary"] for one in operations if one["summary"] not in text]
            assert missing == []
            await picture(opened, "docs", tmp_path)
            # Try it out: the page's own button sends a request, with the key that was typed in.
            key = server.client.headers["authorization"].removeprefix("Bearer ")
            await opened.evaluate("document.querySelector('.btn.authorize').click()")
            await opened.until("document.querySelector('.auth-container input')")
            await opened.evaluate(_typed(".auth-container input", key))
            await opened.evaluate("document.querySelector('.auth-btn-wrapper .authorize').click()")
            await opened.evaluate("document.querySelector('.btn-done').click()")
            await opened.evaluate(
                "document.querySelector('#operations-projects-read_project .opblock-summary-control').click()"
            )
            await opened.until("document.querySelector('.try-out__btn')")
            await opened.evaluate("document.querySelector('.try-out__btn').click()")
            await opened.until("document.querySelector('.execute')")
            await opened.evaluate("document.querySelector('.execute').click()")
            await opened.until("document.querySelector('.live-responses-table .microlight')")
            assert '"name": "default"' in await opened.text()
            await picture(opened, "docs-tried", tmp_path)
            check(opened, origin)

    origin = f"http://127.0.0.1:{server.port}"
    asyncio.run(look())


def _typed(selector: str, value: str) -> str:
    """React sees a value only if it is set past its own setter."""
    return f"""(() => {{
        const field = document.querySelector({selector!r});
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, {value!r});
        field.dispatchEvent(new Event("input", {{bubbles: true}}));
    }})()"""


def test_redoc_lists_every_operation(
    server: Server, operations: list[dict[str, Any]], tmp_path: Path
) -> None:
    async def look() -> None:
        async with page() as opened:
            await opened.open(f"{origin}/redoc")
            await opened.until(f"document.querySelectorAll('[data-section-id]').length >= {len(operations)}")
            text = await opened.text()
            missing = [one["summary"] for one in operations if one["summary"] not in text]
            assert missing == []
            await picture(opened, "redoc", tmp_path)
            check(opened, origin)

    origin = f"http://127.0.0.1:{server.port}"
    asyncio.run(look())


def test_the_check_finds_what_comes_from_elsewhere(server: Server) -> None:
    async def look() -> None:
        async with page() as opened:
            await opened.open(f"{origin}/docs")
            await opened.until("document.querySelector('.opblock')")
            await opened.evaluate("void (document.createElement('img').src = 'http://example.org/x.png')")
            await opened.evaluate("fetch('http://example.org/').catch(() => 0)")
            assert opened.problems, "the policy of the page forbids it"

    origin = f"http://127.0.0.1:{server.port}"
    assert httpx.get(f"{origin}/docs", trust_env=False).status_code == 200
    asyncio.run(look())
