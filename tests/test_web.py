"""The gateway for browsers, without a browser: what it carries, whom it refuses, how it ends."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from hosting import HostProcess

pytest.importorskip("aiohttp", reason='the page needs aiohttp: pip install "worldsim-engine[serve]"')

import aiohttp  # noqa: E402
from browser import PATIENCE, page_of, until  # noqa: E402

from worldsim.bridges.client import Connection  # noqa: E402
from worldsim.bridges.web import WebConfig, join, split  # noqa: E402
from worldsim.errors import ConfigError  # noqa: E402


@pytest.fixture(scope="module")
def address(host: HostProcess) -> Iterator[str]:
    with page_of(host.address) as address:
        yield address


@pytest.fixture(scope="module")
def small(host: HostProcess) -> Iterator[str]:
    with page_of(host.address, "--message-bytes", "1000") as address:
        yield address


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
    opened = watcher.call("open").header

    def watchers() -> int:
        """Of this session; other tests leave some behind at the same host."""
        lines = watcher.call("stats").header["stats"]["lines"]
        return next(line["watchers"] for line in lines if line["session"] == opened["session"][:6])

    async def body(http: aiohttp.ClientSession) -> None:
        async with http.ws_connect(f"{address}ws") as socket:
            await ask(socket, id=1, verb="hello", client="a-browser-1")
            await ask(socket, id=2, verb="watch", session=opened["watch"], credits=100)
            assert watchers() == 1

    talk(body)

    def gone() -> bool:
        watcher.call("step", session=opened["session"], step=watcher.call("render", session=opened["session"])
                     .header["step"], action=0)  # fmt: skip
        return watchers() == 0

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
