"""Hosts that break the protocol, made of a real one and a proxy: of what they reply, and to whom."""

from __future__ import annotations

import json
import secrets
import threading
from typing import Any

import zmq

from worldsim.bridges import protocol

Parts = list[bytes]


class Proxy(threading.Thread):
    """Stands before a host and passes messages on, both ways; a subclass breaks something."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.context, self.host = zmq.Context(), address
        self.front = self.context.socket(zmq.ROUTER)
        self.front.bind("tcp://127.0.0.1:*")
        self.address = self.front.getsockopt_string(zmq.LAST_ENDPOINT)
        self.backs: dict[bytes, zmq.Socket] = {}
        self.asked: dict[int, dict[str, Any]] = {}
        self.done = threading.Event()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.join(10)
        self.context.destroy(linger=0)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.front, zmq.POLLIN)
        while not self.done.is_set():
            for socket, _ in poller.poll(20):
                assert isinstance(socket, zmq.Socket)
                if socket is self.front:
                    peer, *parts = self.front.recv_multipart()
                    if peer not in self.backs:
                        self.backs[peer] = self.context.socket(zmq.DEALER)
                        self.backs[peer].connect(self.host)
                        poller.register(self.backs[peer], zmq.POLLIN)
                    self.take(peer, parts)
                else:
                    peer = next(peer for peer, back in self.backs.items() if back is socket)
                    parts = socket.recv_multipart()
                    header = json.loads(parts[0])
                    self.front.send_multipart([peer, *self.reply(peer, header, parts[1:])])

    def take(self, peer: bytes, parts: Parts) -> None:
        """A request, which may be none."""
        try:
            header = json.loads(parts[0])
            self.asked[header["id"]] = dict(header)
        except (ValueError, TypeError, KeyError):
            self.backs[peer].send_multipart(parts)
            return
        for whole in self.request(peer, header, parts[1:]):
            self.backs[peer].send_multipart(whole)

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        """What goes on to the host."""
        return [[json.dumps(header).encode(), *rest]]

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        """What goes back."""
        return [json.dumps(self.change(header)).encode(), *rest]

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        """The same for the header alone."""
        return header

    def say(self, peer: bytes, header: dict[str, Any], **fields: Any) -> None:
        """Answer in place of the host."""
        said = {"v": 1, "id": header["id"], "verb": header["verb"], **fields}
        self.front.send_multipart([peer, json.dumps(said).encode()])


class StepsAnew(Proxy):
    """A step that comes again is done again: under a new id, with the number that the host wants."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.steps: dict[str, int] = {}
        self.real: dict[int, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if header["verb"] == "step" and header["id"] in self.real.values():
            number = 10**9 + len(self.real)
            self.real[number] = header["id"]
            header |= {"id": number, "step": self.steps.get(header["session"], header["step"])}
        elif header["verb"] == "step":
            self.real[header["id"]] = header["id"]
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if header["id"] in self.real:
            header["id"] = self.real[header["id"]]
        if header["verb"] == "step" and "step" in header:
            self.steps[self.asked[header["id"]]["session"]] = header["step"]
        return header


class ForgetsWhoAsked(Proxy):
    """The number of a request is changed each time, so that nothing is known by it again."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.real: dict[int, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        number = 10**9 + len(self.real)
        self.real[number] = header["id"]
        return super().request(peer, header | {"id": number}, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | {"id": self.real.get(header["id"], header["id"])}


class WrongSteps(Proxy):
    """The number in a step's reply is that before it."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"step": header["step"] - 1} if header["verb"] == "step" and "step" in header else {})


class Noise(Proxy):
    """A pixel of each frame is anything."""

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        return super().reply(peer, header, [secrets.token_bytes(3) + part[3:] for part in rest])


class Small(Proxy):
    """Frames are described as of another shape."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        for buffer in header.get("buffers", ()):
            if buffer.get("encoding") == "raw":
                buffer["shape"] = [buffer["shape"][0] * 2, buffer["shape"][1] // 2, *buffer["shape"][2:]]
        return header


class MoreFields(Proxy):
    """Replies with a field that is not declared."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | {"colour": "blue"}


class OddCodes(Proxy):
    """Errors of a code that there is not."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"error": {"code": "oops", "message": "oops"}} if "error" in header else {})


class Lenient(Proxy):
    """What a verb does not declare is left out, what is missing or wrong is made up."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        declared = protocol.VERBS.get(str(header.get("verb")))
        for field in declared.request if declared else ():
            value = header.get(field.name)
            if value is not None and not protocol.KINDS[field.kind][1](value):
                del header[field.name]
            if header.get(field.name) is None and field.name == "credits":
                header["credits"] = 1
        names = {field.name for field in declared.request} if declared else set(header)
        header = {k: v for k, v in header.items() if k in {"v", "id", "verb", "buffers"} | names and v is not None}
        return super().request(peer, header, rest)


class AnyHeader(Proxy):
    """Another version is taken for this one, an unknown verb for stats, any id and any JSON for a request."""

    def take(self, peer: bytes, parts: Parts) -> None:
        try:
            header = json.loads(parts[0])
        except (ValueError, RecursionError):
            header = {"id": None, "verb": "stats"}
        header = header if isinstance(header, dict) else {"id": None, "verb": "stats"}
        number = header.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            self.say(peer, {"id": None, "verb": "stats"}, stats={})
            return
        if header.get("v") != 1 or str(header.get("verb")) not in protocol.VERBS:
            header |= {"v": 1, "verb": "stats"} if header.get("verb") != "hello" else {"v": 1}
            header = {k: v for k, v in header.items() if k in ("v", "id", "verb", "client")}
        super().take(peer, [json.dumps(header).encode(), *([] if header["verb"] == "stats" else parts[1:])])


class Greets(Proxy):
    """Says hello in the place of those who have not."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        hello = {"v": 1, "id": 2**62, "verb": "hello", "client": secrets.token_hex(8)}
        first = [] if header["verb"] == "hello" or peer in self.known else [[json.dumps(hello).encode()]]
        self.known.add(peer)
        return first + super().request(peer, header, rest)

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.known: set[bytes] = set()

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        return super().reply(peer, header, rest)


class Strangers(Proxy):
    """Each connection is another client."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"client": peer.hex() * 4} if header["verb"] == "hello" else {}), rest)


class Master(Proxy):
    """A token of a watcher or a player counts as the owner's, and each client as every other."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.owners: dict[str, str] = {}
        self.everybody = secrets.token_hex(8)

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if "session" in header:
            header["session"] = self.owners.get(header["session"], header["session"])
        if header["verb"] == "hello":
            header["client"] = self.everybody
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if "watch" in header:
            self.owners[header["watch"]] = header["session"]
        if "player" in header:
            self.owners[header["player"]] = self.asked[header["id"]]["session"]
        return header
