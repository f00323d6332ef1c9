"""Results of checks, and the comparison of a reply with its declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worldsim.bridges import messages, protocol
from worldsim.bridges.messages import Message
from worldsim.errors import ProtocolError

NOBODY = "0" * 32  # a token that no host gives out
MORE = {"wrong-version": "versions", "not-your-turn": "turn", "out-of-order": "step", "too-fast": "wait"}
"""The field of an error besides its message, by code."""


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Attributes:
        name: of the check.
        ok: None where it was skipped.
        detail: the expected and the actual behaviour.
    """

    name: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        """Format the result as a line."""
        word = {True: "ok", False: "FAILED", None: "skipped"}[self.ok]
        return f"{word:8}{self.name}: {self.detail}"


class Failed(Exception):
    """The peer broke the protocol."""

    def __init__(self, expected: str, came: Any) -> None:
        """Say what was expected and what came."""
        super().__init__(f"expected {expected}; came {brief(came)}")


class Skipped(Exception):
    """A check that is not possible here; the message says why."""


def expect(good: bool, expected: str, came: Any) -> None:
    """Fail the check unless `good`.

    Raises:
        Failed: it is not.
    """
    if not good:
        raise Failed(expected, came)


def attempt(name: str, about: str, check: Callable[[], str | None], report: Callable[[str], None] | None) -> Result:
    """Run a check, and report its result.

    Args:
        name: of the check.
        about: what is expected.
        check: returns a remark or None; raises what it finds.
        report: takes the line.
    """
    try:
        remark = check()
        result = Result(name, True, about + (f" ({remark})" if remark else ""))
    except Skipped as why:
        result = Result(name, None, str(why))
    except Failed as failure:
        result = Result(name, False, f"{about} -- {failure}")
    except Exception as error:  # a malformed message that the check itself did not expect
        result = Result(name, False, f"{about} -- came what cannot be read ({type(error).__name__}: {error})")
    if report is not None:
        report(str(result))
    return result


def reply_faults(message: Message) -> list[str]:
    """List the faults of a reply or a push: fields and buffers that are missing, undeclared or of another kind."""
    header = dict(message.header)
    if header.pop("v", None) != protocol.VERSION:
        return [f"'v' is {message.header.get('v')!r}"]
    number, verb = header.pop("id", "missing"), header.pop("verb", "missing")
    header.pop("buffers", None)
    if "error" in header:
        faults = [f"an error with the field {name!r}" for name in header if name != "error"]
        return faults + _error_faults(header["error"])
    known = {**protocol.VERBS, **protocol.PUSHES}
    if verb not in known:
        return [f"a reply of the verb {brief(verb)}"]
    fields = {one.name: one for one in known[verb].reply}
    faults = [f"{verb}: undeclared field {name!r}" for name in header if name not in fields]
    if not isinstance(number, int) or isinstance(number, bool):
        faults.append(f"{verb}: 'id' is {brief(number)}")
    for name, declared in fields.items():
        if header.get(name) is None:
            faults += [f"{verb}: no field {name!r}"] if declared.needed else []
            continue
        try:
            messages.check_field(declared, header[name])
        except ProtocolError as error:
            faults.append(f"{verb}: {error}")
    if tuple(message.buffers) != known[verb].buffers:
        faults.append(f"{verb}: buffers {list(message.buffers)} instead of {list(known[verb].buffers)}")
    return faults


def _error_faults(error: Any) -> list[str]:
    if not isinstance(error, Mapping) or str(error.get("code")) not in protocol.ERRORS:
        return [f"an error that the protocol does not know: {brief(error)}"]
    code = error["code"]
    if code == "failed":
        return [f"an error that should not happen: {brief(error)}"]
    needed = {"code", "message", *([MORE[code]] if code in MORE else [])}
    faults = [f"{code}: no {name!r}" for name in needed if error.get(name) is None]
    faults += [f"{code}: undeclared {name!r}" for name in error if name not in needed]
    return faults + ([] if isinstance(error.get("message"), str) else [f"{code}: 'message' is no text"])


def brief(value: Any) -> str:
    """Shorten a value to a line."""
    if isinstance(value, str):
        return value if len(value) <= 400 else f"{value[:397]}..."
    if isinstance(value, Message):
        error = value.header.get("error")
        fields = {k: v for k, v in value.header.items() if k not in ("v", "id", "verb", "buffers")}
        return f"a reply to {value.header.get('verb')}: {brief(repr(error or fields))}"
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def brief_header(message: Message) -> str:
    """Format the fields of a reply's verb."""
    return str({k: v for k, v in message.header.items() if k not in ("v", "id", "verb", "buffers")})
