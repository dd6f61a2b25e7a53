"""Chromium over the DevTools protocol: just enough of it to open pages and look at them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")

#: Seconds that a page may take to come to what it is waited for.
PATIENCE = 60.0


class PageError(Exception):
    """Raised when the browser refuses a command, or a script throws."""


class Browser:
    """A running Chromium. Made by `browser`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        #: What pages wrote to their consoles as errors, and what they threw.
        self.complaints: list[str] = []

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        return await asyncio.wait_for(answer, PATIENCE)

    async def page(
        self, url: str, *, size: tuple[int, int] = (1280, 800), dark: bool = False
    ) -> Page:
        """Open a tab of ``size``, and wait until the document stands."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = Page(self, target["targetId"], attached["sessionId"])
        await page.send("Runtime.enable")
        await page.send("Page.enable")
        await page.send("Log.enable")
        await page.send(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        await page.colours(dark=dark)
        await page.goto(url)
        return page

    async def listen(self) -> None:
        """Hand answers to who waits for them, until the browser has gone."""
        with contextlib.suppress(OSError):
            async for text in self._socket:
                message = json.loads(text)
                if "id" in message:
                    self._settle(message)
                else:
                    self._heard(message)

    def _settle(self, message: dict[str, Any]) -> None:
        answer = self._answers.pop(message["id"])
        if answer.done():
            return
        if "error" in message:
            answer.set_exception(PageError(str(message["error"])))
        else:
            answer.set_result(message["result"])

    def _heard(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            self.complaints.append(f"{details['text']} {thrown}")
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.complaints.append(f"{entry['text']} ({entry.get('url', '')})")


class Page:
    """One tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command to the tab."""
        return await self._browser.send(method, self._session, **params)

    async def goto(self, url: str) -> None:
        """Open another address, and wait until its document stands."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            raise PageError(f"{details['text']} {thrown}")
        return answer["result"].get("value")

    async def until(self, condition: str, patience: float = PATIENCE) -> Any:
        """Wait until an expression is truthy; return its value."""
        script = (
            f"new Promise((done) => {{ const look = () => {{ const it = ({condition});"
            " it ? done(it) : setTimeout(look, 20); }; look(); })"
        )
        try:
            async with asyncio.timeout(patience):
                while True:
                    # A navigation ends the script that waits: ask the next document.
                    with contextlib.suppress(PageError):
                        return await self.evaluate(script)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimeoutError(f"expected {condition} within {patience} s") from None

    async def click(self, selector: str) -> None:
        """Click an element."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        await self.evaluate(
            f"{{ const it = document.querySelector({json.dumps(selector)});"
            f" it.value = {json.dumps(value)}; it.dispatchEvent(new Event('change')); }}"
        )

    async def give(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file input, as a user would."""
        document = await self.send("DOM.getDocument")
        node = await self.send(
            "DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector
        )
        await self.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[*map(str, files)])

    async def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def colours(self, *, dark: bool) -> None:
        """Prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        got = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(got["data"]))

    async def close(self) -> None:
        """Close the tab, as a user would."""
        await self._browser.send("Target.closeTarget", targetId=self._target)


@contextlib.asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Browser]:
    """Start Chromium with a profile of its own; it has ended when the block is left."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    drained: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            address = ""
            while "DevTools listening on " not in address:
                address = (await process.stderr.readline()).decode()
                assert address, "chromium ended before it listened"
        drained = asyncio.create_task(process.stderr.read())
        url = address.partition("DevTools listening on ")[2].strip()
        async with connect(url, max_size=None, ping_interval=None) as socket:
            running = Browser(socket)
            listening = asyncio.create_task(running.listen())
            try:
                yield running
            finally:
                listening.cancel()
                await asyncio.wait([listening])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        if drained is not None:
            await drained
