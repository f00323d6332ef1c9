"""More hosts that break the protocol: of their clocks, of what they ignore, of limits and of their names."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from typing import Any

from proxies import (
    Parts,
    Proxy,
)

from worldsim.bridges import messages


class Generous(Proxy):
    """A watcher gets credits that it did not ask for."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"credits": 1000} if header["verb"] == "watch" else {}), rest)


class Uncounted(Proxy):
    """What a watcher misses is not counted."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"dropped": 0} if header["verb"] == "frame" else {})


class SlowClock(Proxy):
    """The clock runs at a third of the pace."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"fps": header["fps"] / 3} if "fps" in header else {}), rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"fps": self.asked[header["id"]]["fps"]} if header["verb"] == "run" else {})


class NoPause(Proxy):
    """The clock is not stopped by pause."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"verb": "render"} if header["verb"] == "pause" else {}), rest)

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        if self.asked.get(header["id"], {}).get("verb") != "pause" or "error" in header:
            return super().reply(peer, header, rest)
        said = {k: v for k, v in header.items() if k not in ("role", "world", "buffers")}
        return [json.dumps(said | {"verb": "pause"}).encode()]


class Held(Proxy):
    """A client that floods holds up all others."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        time.sleep(0.03 if header["verb"] == "render" else 0)
        return super().request(peer, header, rest)


class Ignores(Proxy):
    """A verb that is answered and not done."""

    verb, fields = "", {}

    def take(self, peer: bytes, parts: Parts) -> None:
        header = json.loads(parts[0])
        if header["verb"] == self.verb:
            self.say(peer, header, **self.fields)
        else:
            super().take(peer, parts)


class IgnoresClose(Ignores):
    """Sessions are not closed."""

    verb = "close"


class IgnoresDrop(Ignores):
    """Snapshots are not dropped."""

    verb = "drop"


class IgnoresInput(Ignores):
    """What is held is not."""

    verb, fields = "input", {"step": 1}


class IgnoresPrompt(Ignores):
    """Prompts have no effect."""

    verb, fields = "prompt", {"step": 1, "prompt": "a cart"}


class IgnoresUnwatch(Ignores):
    """Frames go on after unwatch."""

    verb = "unwatch"


class Unseeded(Proxy):
    """Seeds are those of other requests, in their order: chance might choose the same starts."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.seeds = itertools.count()

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        for one in (header, *header.get("openings", ())):
            if isinstance(one, dict) and isinstance(one.get("seed"), int):
                one["seed"] = next(self.seeds)
        return super().request(peer, header, rest)


class NoOrder(Proxy):
    """The number in a step is not looked at."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.steps: dict[str, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if header["verb"] == "step":
            header["step"] = self.steps.get(header["session"], header["step"])
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        token = header.get("session") or self.asked.get(header["id"], {}).get("session")
        if "step" in header and token:
            self.steps[token] = header["step"]
        return header


class Unlimited(Proxy):
    """Too large headers and messages, and buffers that do not fit, are taken for nothing."""

    def take(self, peer: bytes, parts: Parts) -> None:
        try:
            messages.unpack(parts)
        except Exception:
            self.say(peer, {"id": json.loads(parts[0]).get("id"), "verb": "stats"}, stats={})
            return
        parts = parts[:1] if sum(map(len, parts)) > 10**6 else parts
        if len(parts) == 1 and b'"buffers"' in parts[0]:
            header = json.loads(parts[0])
            header.pop("buffers")
            parts = [json.dumps(header).encode()]
        super().take(peer, parts)


class NoRefusals(Proxy):
    """What the host refuses of an action, a start, a world or a session is said to be done."""

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        if "error" in header and header["error"]["code"] != "hello-first":
            del header["error"]
            header["step"] = 1
        return super().reply(peer, header, rest)


class NoTurns(Proxy):
    """A player's step is taken at any time: it is made the other's where it is refused."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        changed = {"every": 1000} if header["verb"] == "share" and header.get("mode") == "turns" else {}
        return super().request(peer, header | changed, rest)


class NoEnvelope(Proxy):
    """A REQ socket's empty part is not given back."""

    def take(self, peer: bytes, parts: Parts) -> None:
        super().take(peer, parts[1:] if not parts[0] else parts)


class Keeps(Proxy):
    """Leases never end."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.tokens: list[str] = []
        self.last = 0.0

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if header["verb"] == "open" and "session" in header:
            self.tokens.append(header["session"])
        return header

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        sent = super().request(peer, header, rest)
        if header["verb"] in ("keep", "render"):
            keep = {"v": 1, "id": 2**60 + len(self.asked), "verb": "keep", "sessions": self.tokens[-3:]}
            sent.append([json.dumps(keep).encode()])
        return sent


class Roomy(Proxy):
    """Clients have more than the host says that they may, and are never too fast."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if header.get("error", {}).get("code") == "too-fast":
            return {name: value for name, value in header.items() if name != "error"}
        if "limits" not in header:
            return header
        limits = header["limits"]
        return header | {"limits": limits | {name: max(1, limits[name] // 2) for name in ("sessions", "snapshots")}}


class Endless(Proxy):
    """Episodes have no end."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"truncated": False} if "truncated" in header else {})


class NewHost(Proxy):
    """The host's name is another each time."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"host": secrets.token_hex(8)} if header["verb"] == "hello" else {})


class NoWorlds(Proxy):
    """Hello leaves out what clients need."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        for world in header.get("worlds", ()):
            del world["frame_size"]
        return header


class Nulls(Proxy):
    """A null counts as a value."""

    def take(self, peer: bytes, parts: Parts) -> None:
        header = json.loads(parts[0])
        if None in header.values():
            error = {"code": "bad-field", "message": "null"}
            self.say(peer, header, error=error)
        else:
            super().take(peer, parts)
