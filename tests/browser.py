"""A headless Chromium that tests drive through its DevTools, and the page that it plays."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
PATIENCE = 20.0  # seconds that anything may take

KEYS = {  # name -> what the DevTools protocol says of it
    "left": {"key": "ArrowLeft", "code": "ArrowLeft", "windowsVirtualKeyCode": 37},
    "right": {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
    "up": {"key": "ArrowUp", "code": "ArrowUp", "windowsVirtualKeyCode": 38},
    "backspace": {"key": "Backspace", "code": "Backspace", "windowsVirtualKeyCode": 8},
    "p": {"key": "p", "code": "KeyP", "windowsVirtualKeyCode": 80},
    "enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
}


@contextmanager
def page_of(host: str, *words: str) -> Iterator[str]:
    """The address of a page that plays a host, served by a process of its own."""
    command = [sys.executable, "-m", "worldsim.bridges.web", "--host", host, *words]
    command += [] if "--port" in words else ["--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("page: http://"), line
        yield line.split()[1]
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()


class Chromium:
    """A headless browser, driven through its DevTools."""

    def __init__(self, folder: Path) -> None:
        """Start it."""
        assert CHROMIUM is not None
        folder.mkdir(parents=True)
        words = (
            "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        )
        words += " --remote-debugging-port=0 --disable-dev-shm-usage --force-color-profile=srgb --window-size=1280,800"
        self.log = (folder / "chromium.log").open("wb")
        self.process = subprocess.Popen(
            [CHROMIUM, *words.split(), f"--user-data-dir={folder}", "about:blank"],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )
        self.runner = asyncio.Runner()
        self.count, self.replies, self.problems = 0, {}, []
        port = folder / "DevToolsActivePort"
        until(lambda: port.exists() and len(port.read_text().split()) == 2, "Chromium does not start")
        number, path = port.read_text().split()
        self.runner.run(self._connect(f"ws://127.0.0.1:{number}{path}"))

    async def _connect(self, address: str) -> None:
        self.http = aiohttp.ClientSession()
        self.socket = await self.http.ws_connect(address, max_msg_size=0)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Ask the browser, or one of its pages."""
        return self.runner.run(self._call(method, session, params))

    async def _call(self, method: str, session: str | None, params: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        await self.socket.send_json(request | ({"sessionId": session} if session else {}))
        while True:
            said = await asyncio.wait_for(self.socket.receive_json(), PATIENCE)
            if said.get("method") == "Runtime.exceptionThrown":
                self.problems.append(said["params"]["exceptionDetails"])
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["source"] == "security":
                self.problems.append(said["params"]["entry"])
            if said.get("id") == request["id"]:
                assert "error" not in said, (method, said["error"])
                return said["result"]

    def open(self, address: str, **device: Any) -> Page:
        """A new page, perhaps on another `device`."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Runtime", "Log", "Page"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # each page believes to be in front
        if device:
            page.call("Emulation.setDeviceMetricsOverride", **{"deviceScaleFactor": 1, "mobile": False} | device)
        page.go(address)
        return page

    def close(self) -> None:
        """End it."""
        self.runner.run(self._leave())
        self.runner.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.log.close()

    async def _leave(self) -> None:
        await self.socket.close()
        await self.http.close()


class Page:
    """One page of a browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        """Known by its session with the DevTools."""
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask it."""
        return self.browser.call(method, self.session, **params)

    def go(self, address: str) -> None:
        """Go somewhere."""
        assert "errorText" not in self.call("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """What an expression is there."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true there."""
        there = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"  # it may be loading yet
        return until(lambda: self.js(there), f"never true: {expression}", self.explain)

    def explain(self) -> str:
        """What a person would see."""
        return f"{self.js('document.body.innerText')}\n{self.browser.problems}"

    def text(self, name: str) -> str:
        """Of an element."""
        return self.js(f"document.getElementById('{name}').textContent")

    def click(self, name: str) -> None:
        """Click an element where it is seen."""
        where = f"document.getElementById('{name}').getBoundingClientRect()"
        self.js(f"document.getElementById('{name}').scrollIntoView({{ block: 'nearest' }})")
        x, y = self.js(f"(() => {{ const r = {where}; return [r.x + r.width / 2, r.y + r.height / 2] }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str, down: bool) -> None:
        """Press or release a key."""
        self.call("Input.dispatchKeyEvent", type="keyDown" if down else "keyUp", **KEYS[name])

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold a key."""
        self.key(name, True)
        yield
        self.key(name, False)

    @property
    def step(self) -> int:
        """Of the frame that is shown."""
        return int(self.js("document.getElementById('canvas').dataset.step"))

    def pixels(self) -> np.ndarray:
        """Of the frame that is shown."""
        data = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        code = f"(() => {{ const c = document.getElementById('canvas'); return [c.height, c.width, [...{data}]] }})()"
        height, width, numbers = self.js(code)
        return np.array(numbers, np.uint8).reshape(height, width, 4)[..., :3]

    def record(self, count: int) -> np.ndarray:
        """The next frames that it shows."""
        self.js(
            """(() => { const c = document.getElementById('canvas'); window.frames_ = [];
            window.eye?.disconnect();
            window.eye = new MutationObserver(() => frames_.push(
                [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 < 3)));
            eye.observe(c, { attributes: true, attributeFilter: ['data-step'] }) })()"""
        )
        self.until(f"frames_.length >= {count}")
        height, width = self.js("[canvas.height, canvas.width]")
        frames = np.array(self.js(f"eye.disconnect(), frames_.slice(0, {count})"), np.uint8)
        return frames.reshape(count, height, width, 3)

    def picture(self, path: Path) -> None:
        """Write what it looks like."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def until(true: Callable[[], Any], what: str, explain: Callable[[], str] = lambda: "") -> Any:
    """Wait until something is true; what it is."""
    end = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < end, f"{what}\n{explain()}"
        time.sleep(0.02)
    return value
