"""The page for browsers: the gateway by itself, and the page in a real Chromium.

Past 400 lines, because a browser and a host are started once for all of it.

The picture in the docs, of a host that serves car-racing: python tests/test_web.py docs/media/browser.png
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hosting import HostProcess, hosting

pytest.importorskip("aiohttp", reason='the page needs aiohttp: pip install "worldsim-engine[serve]"')

import aiohttp  # noqa: E402

from worldsim.bridges.client.connection import Connection  # noqa: E402
from worldsim.bridges.web import WebConfig, join, split  # noqa: E402
from worldsim.errors import ConfigError  # noqa: E402

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


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium") / "profile")
    yield browser
    browser.close()
    assert browser.problems == []  # no exception, and nothing that the content policy had to stop


@pytest.fixture(scope="module")
def address(host: HostProcess) -> Iterator[str]:
    with page_of(host.address) as address:
        yield address


@pytest.fixture(scope="module")
def small(host: HostProcess) -> Iterator[str]:
    with page_of(host.address, "--message-bytes", "1000") as address:
        yield address


# The gateway, without a browser.


def talk(body: Callable[[aiohttp.ClientSession], Any]) -> Any:
    """Run a conversation with the gateway."""

    async def whole() -> Any:
        async with aiohttp.ClientSession() as http:
            return await asyncio.wait_for(body(http), PATIENCE)

    return asyncio.run(whole())


async def ask(socket: Any, **header: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Send a request, and give its answer."""
    await socket.send_bytes(join([json.dumps({"v": 1} | header).encode()]))
    while True:
        first, *rest = split((await socket.receive()).data)
        if (said := json.loads(first))["id"] == header["id"]:
            return said, rest


async def ended(socket: Any) -> tuple[int | None, str]:
    """The code and the words with which a WebSocket is closed."""
    while not (message := await socket.receive()).type.name.startswith("CLOS"):
        pass
    return socket.close_code, message.extra or ""


def test_a_message_comes_apart_as_it_was_put_together():
    parts = [b'{"v":1}', b"", bytes(range(256))]
    assert join(parts[:1]) == b'\x07\x00\x00\x00{"v":1}'
    assert split(join(parts)) == parts
    for garbage in (b"", b"\x05\x00", struct.pack("<I", 2**32 - 1) + b"x", join([b""] * 66)):
        with pytest.raises(ValueError):
            split(garbage)


def test_a_public_page_needs_a_password_which_no_message_shows():
    with pytest.raises(ConfigError, match="--token"):
        WebConfig(bind="0.0.0.0")
    with pytest.raises(ConfigError) as error:
        WebConfig(bind="0.0.0.0", token="sesame", port=0, patience=0)
    assert "sesame" not in str(error.value)


def test_a_browser_is_a_client_of_the_host(address: str, host: HostProcess):
    async def body(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"{address}ws", max_msg_size=0) as socket:
            refused, _ = await ask(socket, id=1, verb="stats")
            assert refused["error"]["code"] == "hello-first"
            hello, _ = await ask(socket, id=2, verb="hello", client="a-browser-1")
            assert [world["name"] for world in hello["worlds"]] == ["CartPole-v1"]
            opened, frames = await ask(socket, id=3, verb="open", seed=5, prompt="a cart")
            assert len(frames[0]) == 40 * 40 * 3
            again, same = await ask(socket, id=3, verb="open", seed=5, prompt="a cart")
            assert (again, same) == (opened, frames)  # the host's own care, through the gateway
            await socket.send_bytes(join([b"{"]))
            assert b"bad-message" in (await socket.receive()).data
            await ask(socket, id=4, verb="close", session=opened["session"])

    talk(body)


def test_who_may_not_come(address: str):
    async def body(http: aiohttp.ClientSession) -> list[int]:
        tries: list[tuple[str, dict[str, str]]] = [
            ("ws", {"Origin": "http://evil.example"}),
            ("ws", {"Origin": "null"}),
            ("ws", {"Origin": f"{address[:-1]}0"}),
            ("ws", {"Host": "evil.example", "Origin": "http://evil.example"}),  # a name that was bent to lead here
            ("", {"Host": "evil.example"}),
            ("web.py", {}),
            ("%2e%2e/web.py", {}),
        ]
        return [(await http.get(address + path, headers=headers)).status for path, headers in tries]

    assert talk(body) == [403, 403, 403, 403, 403, 404, 404]

    async def ours(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"{address}ws", headers={"Origin": address[:-1]}) as socket:
            await ask(socket, id=1, verb="hello", client="a-browser-1")

    talk(ours)


def test_a_password(host: HostProcess):
    with page_of(host.address, "--token", "open s\u00e9same", "--connections", "1") as address:

        async def body(http: aiohttp.ClientSession) -> None:
            for path in ("", "ws", "?token=wrong", "ws?token=wrong"):
                assert (await http.get(address + path)).status == 403
            page = await http.get(address, params={"token": "open s\u00e9same"})
            assert page.status == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert (await http.get(f"{address}style.css")).status == 200  # the question for it is dressed too
            async with http.ws_connect(f"{address}ws?token=open%20s%C3%A9same") as socket:
                await ask(socket, id=1, verb="hello", client="a-browser-1")
                assert (await http.get(f"{address}ws?token=open%20s%C3%A9same")).status == 503  # one is enough
            while (await http.get(f"{address}ws?token=open%20s%C3%A9same")).status == 503:
                await asyncio.sleep(0.01)  # until the first one has gone

        talk(body)


@pytest.mark.parametrize(
    ("data", "code"),
    [(join([bytes(2000)]), 1009), (b"\xff\xff\xff\xff{}", 1007), (b"", 1007), ("{}", 1003)],
    ids=["too large", "no message", "empty", "text"],
)
def test_what_is_no_message_ends_the_connection(small: str, data: bytes | str, code: int):
    async def body(http: aiohttp.ClientSession) -> int | None:
        async with http.ws_connect(f"{small}ws") as socket:
            await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
            return (await ended(socket))[0]

    assert talk(body) == code


def test_the_host_goes_and_was_never_there():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with page_of(f"tcp://127.0.0.1:{port}", "--patience", "0.5") as address:

            async def body(http: aiohttp.ClientSession) -> None:
                async with http.ws_connect(f"{address}ws") as socket:
                    await socket.send_bytes(join([b"{}"]))
                    peer, said = await asyncio.to_thread(router.recv_multipart)
                    assert said == b"{}"
                    await asyncio.to_thread(router.send_multipart, [peer, b"{}", b"pixels"])
                    assert split((await socket.receive()).data) == [b"{}", b"pixels"]
                    router.close(linger=0)
                    assert await ended(socket) == (1012, "The host is gone. It may come back.")
                async with http.ws_connect(f"{address}ws") as socket:
                    code, why = await ended(socket)
                    assert code == 1013 and "worldsim serve" in why

            talk(body)


def test_the_host_hears_when_a_browser_goes(address: str, host: HostProcess):
    watcher = Connection(host.address)
    watchers = lambda: [line["watchers"] for line in watcher.call("stats").header["stats"]["lines"]]  # noqa: E731
    opened = watcher.call("open").header

    async def body(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"{address}ws") as socket:
            await ask(socket, id=1, verb="hello", client="a-browser-1")
            await ask(socket, id=2, verb="watch", session=opened["watch"], credits=100)
            assert 1 in watchers()

    talk(body)

    def gone() -> bool:
        watcher.call("step", session=opened["session"], step=watcher.call("render", session=opened["session"])
                     .header["step"], action=0)  # fmt: skip
        return 1 not in watchers()

    until(gone, "the host still has it as a watcher")
    watcher.call("close", session=opened["session"])
    watcher.close()


def test_a_slow_browser_loses_frames_and_nothing_else():
    """A host that talks without end, and a browser that does not listen for a while."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        router.setsockopt(zmq.SNDTIMEO, 2000)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        pixels, count = bytes(200_000), 400  # far more than sockets hold
        with page_of(f"tcp://127.0.0.1:{port}") as address:

            def flood() -> None:
                peer, _ = router.recv_multipart()
                for step in range(count):
                    router.send_multipart([peer, json.dumps({"verb": "frame", "step": step}).encode(), pixels])
                router.send_multipart([peer, b'{"verb":"keep","id":7}'])

            async def body(http: aiohttp.ClientSession) -> list[int]:
                async with http.ws_connect(f"{address}ws", max_msg_size=0) as socket:
                    await socket.send_bytes(join([b"{}"]))
                    await asyncio.to_thread(flood)  # nobody reads meanwhile, and the host is not held up
                    steps = []
                    while (said := json.loads(split((await socket.receive()).data)[0]))["verb"] == "frame":
                        steps.append(said["step"])
                    assert said["id"] == 7
                    return steps

            steps = talk(body)
    assert 0 < len(steps) < count and steps == sorted(steps)


def test_it_ends_with_the_program_that_started_it(host: HostProcess):
    command = [sys.executable, "-m", "worldsim.bridges.web", "--host", host.address, "--port", "0", "--attached"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().startswith(b"page: ")
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_without_aiohttp_it_says_what_to_install():
    code = "import sys; sys.modules['aiohttp'] = None; sys.argv[1:] = []; import runpy; "
    code += "runpy.run_module('worldsim.bridges.web', run_name='__main__')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 1 and 'pip install "worldsim-engine[serve]"' in said.stderr.splitlines()[-1]


# The page, in a browser.


def opened(chromium: Chromium, address: str, **device: Any) -> Page:
    """A page with a session that has its first frame."""
    page = chromium.open(address, **device)
    page.until("document.getElementById('canvas').dataset.step && document.getElementById('play').hidden === false")
    return page


def session_of(page: Page) -> str:
    """The token of the session that it plays."""
    return page.js("new URLSearchParams(location.hash.slice(1)).get('session')")


def link_of(page: Page, button: str) -> str:
    """The link that a button offers."""
    page.click(button)
    link = page.until("document.getElementById('link').value")
    page.js("document.getElementById('dialog').close(), document.getElementById('link').value = ''")
    return link


def reload(page: Page) -> None:
    """Load the page anew, and wait until the old one is gone, which may go on for some frames."""
    page.js("document.body.dataset.old = 'yes'")
    page.call("Page.reload")
    page.until("document.readyState === 'complete' && document.body && !document.body.dataset.old")


def pause(page: Page) -> int:
    """Pause, and wait until the last frame is shown, which may be on its way for long on a busy machine; its number."""
    page.click("pause")
    page.until("document.getElementById('pause').textContent === 'Run'")
    stood = -1
    while stood != page.step:
        stood = page.step
        time.sleep(0.7)
    return stood


@needs_chromium
def test_keys_play_and_pause_stops(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    first, start = page.pixels(), page.step
    with page.holding("right"):  # the first key starts the clock
        frames = page.record(8)
    with page.holding("left"):
        page.until("/^\\d+ ms$/.test(document.getElementById('latency').textContent)")
    assert page.step >= start + 8
    assert all((one != other).any() for one, other in zip(frames, frames[1:], strict=False))
    assert (page.pixels() != first).any()
    page.until("Number(document.getElementById('fps').textContent) > 5")
    page.until("/ms$/.test(document.getElementById('ping').textContent)")
    stood = pause(page)
    time.sleep(0.5)
    assert page.step == stood
    page.key("p", True)
    page.key("p", False)
    page.until(f"document.getElementById('canvas').dataset.step > {stood}")
    pause(page)
    connection = Connection(host.address)  # what is shown is what the host has, but for JPEG
    record = connection.call("render", session=session_of(page), encoding="raw")
    assert record.header["step"] == page.step
    assert np.abs(record.buffers["frame"].astype(int) - page.pixels()).mean() < 6
    connection.close()


@needs_chromium
def test_a_reload_goes_on_with_the_session(chromium: Chromium, address: str):
    page = opened(chromium, address)
    token = session_of(page)
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step > 10")
    reload(page)
    page.until("document.getElementById('canvas').dataset.step > 15")
    assert session_of(page) == token
    stood = pause(page)
    reload(page)
    page.until("document.getElementById('canvas').dataset.step")
    time.sleep(0.5)
    assert page.step == stood  # what was paused stays so


@needs_chromium
def test_a_watcher_sees_the_same_and_cannot_steer(chromium: Chromium, address: str):
    page = opened(chromium, address)
    link = link_of(page, "share")
    assert "#watch=" in link and session_of(page) not in link
    watcher = chromium.open(link)
    watcher.until("document.getElementById('canvas').dataset.step")
    page.click("play")
    watcher.until("document.getElementById('canvas').dataset.step > 10")
    with watcher.holding("right"):
        time.sleep(0.2)
    assert watcher.text("error") == ""
    stood = pause(page)
    watcher.until(f"document.getElementById('canvas').dataset.step == {stood}")
    np.testing.assert_array_equal(watcher.pixels(), page.pixels())
    seen = "[...document.querySelectorAll('button, input')].filter((e) => e.checkVisibility()).length"
    assert watcher.js(seen) == 0


@needs_chromium
def test_a_prompt(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    assert page.js("[...document.getElementById('prompts').options].map((o) => o.value)") == ["a cart"]
    connection = Connection(host.address)
    for words in ("", "a cart"):
        page.js("document.getElementById('prompt').focus(), document.getElementById('prompt').select()")
        page.call("Input.insertText", text=words)
        page.key("enter", True)
        page.key("enter", False)
        page.until("document.activeElement.id === 'stage'")
        assert connection.call("render", session=session_of(page)).header["prompt"] == words
    connection.close()


@needs_chromium
def test_going_back(chromium: Chromium, address: str):
    page = opened(chromium, address)
    page.click("play")
    kept = f"JSON.parse(sessionStorage.getItem('snapshots {session_of(page)}') ?? '[]')"
    page.until(f"{kept}.length >= 3")
    first, before = page.js(f"{kept}[0].step"), page.step
    with page.holding("backspace"):
        page.until(f"document.getElementById('canvas').dataset.step == {first}")
        time.sleep(0.6)
        assert page.step == first < before  # it stands at the oldest for as long as the key is held
    page.until(f"document.getElementById('canvas').dataset.step > {first + 2}")  # and goes on from there
    assert page.text("error") == ""
    page.click("reset")
    page.until("document.getElementById('canvas').dataset.step < 20")
    pause(page)


@needs_chromium
def test_a_fork_is_a_session_of_its_own(chromium: Chromium, address: str):
    page = opened(chromium, address)
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step > 12")
    stood = pause(page)
    twin = opened(chromium, link_of(page, "fork"))
    assert twin.step == stood and session_of(twin) != session_of(page)
    np.testing.assert_array_equal(twin.pixels(), page.pixels())
    twin.click("play")
    twin.until(f"document.getElementById('canvas').dataset.step > {stood + 3}")
    pause(twin)
    assert page.step == stood
    assert "#watch=" in link_of(twin, "share")


@needs_chromium
def test_a_second_player_steers_too(chromium: Chromium, address: str, host: HostProcess):
    page = opened(chromium, address)
    page.click("second")
    page.js("for (const box of document.querySelectorAll('#parts input')) box.checked = box.value === 'right'")
    page.click("make")
    link = page.until("document.getElementById('link').value")
    assert "#play=" in link
    page.js("document.getElementById('dialog').close()")
    player = chromium.open(link)
    player.until("document.getElementById('canvas').dataset.step")
    assert not player.js("document.getElementById('pause').checkVisibility()")
    page.click("play")
    player.until("document.getElementById('canvas').dataset.step > 10")
    with player.holding("right"):
        player.until("/ms$/.test(document.getElementById('latency').textContent)")
    assert player.text("error") == "" == page.text("error")
    pause(page)


@needs_chromium
def test_a_session_that_is_over(chromium: Chromium, address: str):
    page = chromium.open(f"{address}#session=long-gone-session")
    page.until("document.getElementById('play-text').textContent === 'Begin anew'")
    assert page.text("error") == "This session is over."
    page.click("play")
    page.until("document.getElementById('canvas').dataset.step")
    assert session_of(page) != "long-gone-session"
    watcher = chromium.open(f"{address}#watch=long-gone-session")
    watcher.until("document.getElementById('note').textContent === 'This session is over.'")
    assert not watcher.js("document.getElementById('play').checkVisibility()")


@needs_chromium
def test_a_link_asks_for_the_password_and_still_knows_where_it_leads(chromium: Chromium, host: HostProcess):
    other = Connection(host.address)
    session = other.call("open").header
    with page_of(host.address, "--token", "open s\u00e9same") as address:
        page = chromium.open(f"{address}#watch={session['watch']}")
        page.until("document.activeElement.id === 'token'")
        page.call("Input.insertText", text="open s\u00e9same")
        page.key("enter", True)
        page.until(f"document.getElementById('canvas').dataset.step == {session['step']}")
    other.call("close", session=session["session"])
    other.close()


@needs_chromium
def test_a_phone_has_keys_on_its_screen(chromium: Chromium, address: str):
    page = opened(chromium, address, width=360, height=740, mobile=True)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    reload(page)
    page.until(
        "document.getElementById('pad').checkVisibility() && document.querySelectorAll('[data-key=right]').length === 1"
    )
    assert page.js("document.documentElement.scrollWidth") <= 360
    x, y = page.js("(({ x, y }) => [x + 9, y + 9])(document.querySelector('[data-key=right]').getBoundingClientRect())")
    page.click("play")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.until("document.querySelector('[data-key=right]').classList.contains('down')")
    page.until("document.getElementById('canvas').dataset.step > 12")
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until("!document.querySelector('.down')")
    pause(page)


@needs_chromium
def test_the_gateway_comes_back(chromium: Chromium, host: HostProcess):
    with page_of(host.address) as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
    page.until("document.getElementById('state').dataset.state === 'away'")
    before = page.step
    with page_of(host.address, "--port", address.rstrip("/").rsplit(":", 1)[1]) as same:
        assert same == address
        page.until(f"document.getElementById('canvas').dataset.step > {before + 10}")
        assert page.text("error") == ""
        pause(page)


@needs_chromium
@pytest.mark.slow
def test_a_host_that_comes_back(chromium: Chromium, world_path: Path, tmp_path: Path):
    with hosting([world_path], tmp_path) as host, page_of(host.address, "--patience", "1") as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
        before = page.step
        host.kill()
        page.until("document.getElementById('state').dataset.state === 'away'")
        assert "come back" in page.text("state-text")
        again = HostProcess([world_path], tmp_path, host.port, "--resume")
        try:
            page.until(f"document.getElementById('canvas').dataset.step > {before + 10}")
            assert page.js("document.getElementById('state').dataset.state") == "online"
            assert page.text("error") == ""
        finally:
            again.kill()


@needs_chromium
@pytest.mark.slow
def test_the_road_turns_the_way_that_is_steered(chromium: Chromium, tmp_path: Path):
    """Car-racing from above: steering left turns the picture to the right about the car, and the other way round."""
    import torch

    from worldsim.evaluation.steering import orbit, turns

    with hosting(["car-racing"], tmp_path) as host, page_of(host.address) as address:
        page = opened(chromium, address)
        page.click("play")
        page.until("document.getElementById('canvas').dataset.step > 12")
        pause(page)
        other, session = Connection(host.address), session_of(page)  # for what a person cannot do: begin as we like
        step = other.call("reset", session=session, start=1, seed=1).header["step"]
        for _ in range(8):
            step = other.call("step", session=session, step=step, keys="up").header["step"]
        kept = other.call("snapshot", session=session).header["snapshot"]
        amounts = {}
        for key in ("left", "right"):
            other.call("restore", session=session, snapshot=kept)
            with page.holding(key):
                page.click("play")
                frames = torch.from_numpy(page.record(8))
            pause(page)
            amounts[key] = turns(frames[:-1], frames[1:], orbit())[0].tolist()
        other.close()
    assert np.mean(amounts["left"]) > 1 and np.mean(amounts["right"]) < -1, amounts


def take_picture(path: Path, folder: Path, host: str = "tcp://127.0.0.1:5570") -> None:
    """Play car-racing for a few frames, and write what the page looks like then."""
    with closing(Chromium(folder / "profile")) as browser, page_of(host) as address:
        page = opened(browser, address, width=1280, height=800)
        other, session = Connection(host), session_of(page)
        other.call("reset", session=session, start=1, seed=1)
        page.until("/ms$/.test(document.getElementById('ping').textContent)")
        page.click("play")
        page.record(1)
        with page.holding("up"):
            page.until("/ms$/.test(document.getElementById('latency').textContent)")
            page.record(4)
            page.picture(path)
        pause(page)
        other.call("close", session=session)
        other.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        take_picture(Path(sys.argv[1]), Path(folder), *sys.argv[2:])
