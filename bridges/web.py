"""The page that plays a host's worlds in a browser: `worldsim serve --web`, or by itself next to any host.

python -m worldsim.bridges.web --host tcp://127.0.0.1:5570 --port 8570

Browsers have no ZeroMQ. The page speaks the very protocol of docs/protocol.md through a WebSocket at /ws, which gets
a DEALER socket of its own here; sessions, leases and limits stay the host's. A binary message is
[u32 length of the header][header as JSON][u32 length of a buffer][buffer]..., little-endian, both ways.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
import zmq.auth
from zmq.utils.monitor import parse_monitor_message

from worldsim.bridges import messages, protocol
from worldsim.errors import BridgeError, ConfigError, MissingDependency, ProtocolError, WorldsimError

try:
    from aiohttp import WSCloseCode, WSMsgType, web
except ImportError as cause:
    missing = MissingDependency("aiohttp", "the page for browsers", 'pip install "worldsim-engine[serve]"')
    if __name__ == "__main__":
        sys.exit(f"worldsim: {missing}")
    raise missing from cause

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "WORLDSIM_WEB_TOKEN"  # environment variable
PAGE = Path(__file__).parent / "addons" / "page"
FILES = {"style.css": "text/css", "play.js": "text/javascript", "client.js": "text/javascript"}
QUEUE = 64  # messages that may wait at the host's socket for one browser
SLOW = 256 * 1024  # bytes that wait for a browser, over which frames are left out
STOPPED = 1024 * 1024  # bytes over which nothing more is taken from the host for it
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may have the password
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>worldsim</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="style.css">
<main class="ask"><h1>worldsim</h1><p>{why}</p>
<form><label for="token">Password</label> <input id="token" name="token" type="password" autofocus>
<button>Go on</button></form></main></html>"""
End = tuple[int, str]
"""Why a WebSocket is closed: a code and words."""


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """Where the page is served, and which host it plays."""

    host: str = f"tcp://127.0.0.1:{protocol.PORT}"
    """Address of the host."""
    bind: str = "127.0.0.1"
    """Address of the page; any but a loopback one needs a token."""
    port: int = 8570
    """0 takes a free one."""
    token: str | None = field(default_factory=lambda: os.environ.get(TOKEN))
    """A password for the page (default: the environment variable WORLDSIM_WEB_TOKEN, which others cannot see)."""
    key: Path | None = None
    """Secret CURVE key, for a host that has keys."""
    host_key: Path | None = None
    """The host's public CURVE key."""
    connections: int = 64
    """Browsers at a time."""
    message_bytes: int = 4 * 2**20
    """Of one message from a browser."""
    patience: float = 3.0
    """Seconds without an answer after which the host counts as away."""
    heartbeat: float = 20.0
    """Seconds between two pings; a browser that does not answer is disconnected."""
    attached: bool = False
    """Stop when standard input ends: with the program that started this."""

    def __post_init__(self) -> None:
        """Check."""
        if self.bind not in LOOPBACK and not self.token:
            raise ConfigError(
                f"bind is {self.bind!r}, which others can reach; the page needs a password: --token WORDS."
            )
        if min(self.connections, self.message_bytes, self.patience, self.heartbeat) <= 0:
            raise ConfigError("connections, message_bytes, patience and heartbeat must be over 0.")
        if (self.key is None) != (self.host_key is None):
            raise ConfigError("key and host_key go together: a secret key and the host's public one.")


class Gateway:
    """The page and its WebSockets, as an aiohttp application.

    Args:
        config: settings.

    Attributes:
        app: to be served.
        relays: the WebSockets that are open.
    """

    def __init__(self, config: WebConfig) -> None:
        """Begin without browsers."""
        self.config = config
        self.relays: set[web.WebSocketResponse] = set()
        self._context = zmq.asyncio.Context()
        self.app = web.Application()
        self.app.router.add_get("/", self.index)
        self.app.router.add_get("/ws", self.relay)
        self.app.router.add_get("/{name}", self.file)
        self.app.on_response_prepare.append(_harden)
        self.app.on_shutdown.append(self._farewell)
        self.app.on_cleanup.append(self._close)

    async def index(self, request: web.Request) -> web.StreamResponse:
        """Serve the page, or the form for the password."""
        if why := self._refused_request(request):
            return web.Response(status=403, text=ASK.format(why=why), content_type="text/html")
        return web.FileResponse(PAGE / "index.html")

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Serve a file of the page; none is secret."""
        name = request.match_info["name"]
        if name not in FILES:
            raise web.HTTPNotFound
        return web.FileResponse(PAGE / name, headers={"Content-Type": f"{FILES[name]}; charset=utf-8"})

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Carry messages between a browser and the host until one of them closes."""
        if why := self._refused_request(request) or self._foreign_page(request):
            raise web.HTTPForbidden(text=why)
        if len(self.relays) >= self.config.connections:
            raise web.HTTPServiceUnavailable(text=f"{self.config.connections} browsers are here already.")
        browser = web.WebSocketResponse(
            max_msg_size=self.config.message_bytes, heartbeat=self.config.heartbeat, compress=False
        )
        self.relays.add(browser)
        try:
            await browser.prepare(request)
            transport = request.transport
            if transport is not None:
                transport.set_write_buffer_limits(high=STOPPED)
                await self._carry(browser, transport)
        finally:
            self.relays.discard(browser)
        return browser

    async def _carry(self, browser: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        socket = self._dealer()
        events = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        socket.connect(self.config.host)
        ways = [_up(browser, socket), _down(browser, socket, transport), self._attend(events)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code, why = done.pop().result()
            await browser.close(code=code, message=why.encode()[:120])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            socket.disable_monitor()
            socket.close(linger=0)

    async def _attend(self, events: zmq.asyncio.Socket) -> End:
        """Wait until the host is gone or has not answered in time."""

        async def until(wanted: int) -> None:
            while parse_monitor_message(await events.recv_multipart())["event"] != wanted:
                pass

        try:
            await asyncio.wait_for(until(zmq.EVENT_HANDSHAKE_SUCCEEDED), self.config.patience)
        except TimeoutError:
            return WSCloseCode.TRY_AGAIN_LATER, "The host does not answer. Is worldsim serve running?"
        await until(zmq.EVENT_DISCONNECTED)
        return WSCloseCode.SERVICE_RESTART, "The host is gone. It may come back."

    def _dealer(self) -> zmq.asyncio.Socket:
        socket, config = self._context.socket(zmq.DEALER), self.config
        socket.setsockopt(zmq.SNDHWM, QUEUE)
        socket.setsockopt(zmq.RCVHWM, QUEUE)
        if config.key is not None and config.host_key is not None:
            socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(config.key)
            socket.curve_serverkey = zmq.auth.load_certificate(config.host_key)[0]
        return socket

    def _refused_request(self, request: web.Request) -> str:
        """Say why a request is refused: a missing password, or a foreign host name; empty if it is not."""
        if self.config.token:
            token = request.query.get("token", request.headers.get("token", ""))
            if not hmac.compare_digest(token.encode(), self.config.token.encode()):
                return "This page needs a password." if not token else "That is not the password."
        elif request.url.host not in LOOPBACK:  # else a foreign name that leads here would be the same origin
            return f"Without a password this page is served as {' or '.join(LOOPBACK)} only; give it a --token."
        return ""

    def _foreign_page(self, request: web.Request) -> str:
        """Say why a WebSocket of another site's page is refused; empty for our page and for programs."""
        origin = request.headers.get("Origin")
        if origin is None or origin.partition("://")[2] == request.host:
            return ""
        return f"A page of {origin[:200]} may not come here."

    async def _farewell(self, _: web.Application) -> None:
        for browser in list(self.relays):
            await browser.close(code=WSCloseCode.GOING_AWAY, message=b"The page's server stops.")

    async def _close(self, _: web.Application) -> None:
        self._context.destroy(linger=0)


def join(parts: Sequence[Any]) -> bytes:
    """Join the parts of a message into one."""
    return b"".join(piece for part in parts for piece in (struct.pack("<I", len(part)), part))


def split(data: bytes) -> list[bytes]:
    """Split a message into its parts.

    Raises:
        ValueError: it is not made of them.
    """
    parts, place = [], 0
    while place < len(data):
        if len(parts) > protocol.MAX_BUFFERS:
            raise ValueError(f"More than {protocol.MAX_BUFFERS + 1} parts.")
        begin = place + 4
        place = begin + int.from_bytes(data[place:begin], "little")
        if place > len(data):
            raise ValueError(f"Part {len(parts)} ends at byte {place}, the message at {len(data)}.")
        parts.append(data[begin:place])
    if not parts:
        raise ValueError("An empty message.")
    return parts


async def _up(browser: web.WebSocketResponse, socket: zmq.asyncio.Socket) -> End:
    """Carry messages from the browser to the host."""
    async for message in browser:
        if message.type is WSMsgType.TEXT:
            return WSCloseCode.UNSUPPORTED_DATA, "Messages are binary here."
        if message.type is WSMsgType.BINARY:
            try:
                await socket.send_multipart(split(message.data), zmq.NOBLOCK)
            except ValueError as error:
                return WSCloseCode.INVALID_TEXT, str(error)
            except zmq.Again:
                pass  # the host does not read; the browser sends it again after its timeout
    return WSCloseCode.OK, ""


async def _down(browser: web.WebSocketResponse, socket: zmq.asyncio.Socket, transport: asyncio.Transport) -> End:
    """Carry messages from the host to the browser; a slow browser gets no pushed frames."""
    while True:
        parts = await socket.recv_multipart()
        if transport.get_write_buffer_size() > SLOW and _is_frame(parts):
            continue  # the credits of the next frame show the gap
        try:
            await browser.send_bytes(join(parts))
        except ConnectionError:
            return WSCloseCode.OK, ""


def _is_frame(parts: Sequence[bytes]) -> bool:
    try:
        return messages.read_header(parts).get("verb") == "frame"
    except ProtocolError:
        return False


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def serve_page(config: WebConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM, and print its address.

    Raises:
        BridgeError: the address cannot be bound, or a key cannot be read.
    """
    asyncio.run(_serve(config))


async def _serve(config: WebConfig) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    if config.attached:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # nothing is ever written there: it can only end
    gateway = Gateway(config)
    runner = web.AppRunner(gateway.app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        gateway._dealer().close()  # raises now if keys cannot be read
        site = web.TCPSite(runner, config.bind, config.port)
        await site.start()
        bind = f"[{config.bind}]" if ":" in config.bind else config.bind
        print(f"page: http://{bind}:{runner.addresses[0][1]}/", flush=True)
        await stop.wait()
    except (OSError, ValueError) as error:
        raise BridgeError(f"the page cannot be served at {config.bind} port {config.port}: {error}.") from error
    finally:
        await runner.cleanup()


def main(args: Sequence[str] | None = None) -> int:
    """Serve the page as the command line says; return the exit status."""
    import tyro

    try:
        serve_page(tyro.cli(WebConfig, prog="python -m worldsim.bridges.web", description=__doc__, args=args))
    except WorldsimError as error:
        print(f"worldsim: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
