"""A real Chromium without a window, driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

import asyncio
import base64
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--mute-audio",
    ),
    # No name but this machine's can be looked up, whatever a page asks for.
    *("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-port=0"),
    *("--disable-dev-shm-usage", "--window-size=1280,1000", "--force-color-profile=srgb"),
)
_PATIENCE = 90.0


class Page:
    """One tab. `requests`: every address that it asked for; `problems`: errors of scripts, network and policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
                continue
            given = told["params"]
            match told["method"]:
                case "Network.requestWillBeSent":
                    self.requests.append(given["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.problems.append(str(given["exceptionDetails"]))
                case "Log.entryAdded" if given["entry"]["level"] == "error":
                    self.problems.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
                case "Runtime.consoleAPICalled" if given["type"] == "error":
                    self.problems.append(str([one.get("value") for one in given["args"]]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        told = await asyncio.wait_for(answer, _PATIENCE)
        assert "error" not in told, f"{method}: {told['error']}"
        found: dict[str, Any] = told["result"]
        return found

    async def open(self, url: str) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(_PATIENCE):
            while not await self.evaluate(f"Boolean({expression})"):
                await asyncio.sleep(0.1)

    async def text(self) -> str:
        found: str = await self.evaluate("document.body.innerText")
        return found

    async def screenshot(self, file: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    async def close(self) -> None:
        self._listening.cancel()
        await self._socket.close()


def program() -> str:
    """Chromium's path; installs Debian's package where there is none."""
    if shutil.which("chromium") is None:
        subprocess.run([ROOT / "tests" / "environments" / "debian.sh", "chromium"], check=True)
    found = shutil.which("chromium")
    assert found is not None, "the package chromium brings no program of that name"
    return found


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="retort-chromium-", ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            program(),
            *_ARGUMENTS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    targets = await answer.json()
                address = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
                socket = await http.ws_connect(address, max_msg_size=0)
                opened = Page(socket)
                yield opened
                await opened.close()
        finally:
            browser.terminate()
            await browser.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(_PATIENCE):
        while not file.exists() or not file.read_text().strip():
            await asyncio.sleep(0.05)
    return int(file.read_text().splitlines()[0])
