"""Checks of rights: of owners, second players, watchers and clients without a token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from worldsim.bridges import protocol
from worldsim.bridges.conformance.checks import NOBODY, expect
from worldsim.bridges.conformance.host_checks.registry import Checks
from worldsim.bridges.conformance.host_lab import Game, Lab, equal

CHECKS = Checks()


@CHECKS.add("no-session")
def _no_session(lab: Lab) -> None:
    """An unknown token is refused."""
    peer = lab.peer()
    for verb, declared in protocol.VERBS.items():
        if any(one.name == "session" for one in declared.request) and verb != "close":
            fields = {"prompt": "", "credits": 1, "step": 1, "snapshot": NOBODY, "mode": "turns"}
            needed = {one.name for one in declared.request if one.needed}
            found = {name: value for name, value in fields.items() if name in needed}
            found |= {"action": lab.actions(1)[0]} if verb in ("step", "input") else {}
            peer.refused("no-session", verb, session=NOBODY, **found)
    peer.refused("no-snapshot", "open", world=lab.world["name"], snapshot=NOBODY)


@CHECKS.add("watch-token")
def _watch_token(lab: Lab) -> None:
    """A watch token permits nothing but to watch."""
    game = lab.open()
    token = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    _forbidden(game, game.watch, token, ("step", "input", "prompt", "keep"))
    watcher = lab.peer()
    watcher.ask("watch", session=game.watch, credits=1)
    game.play()
    frames = watcher.pushes(2.0, 1)
    expect(len(frames) == 1, "a frame for the watcher", "none")
    equal(lab.frame(frames[0]), game.frame, "the frame that was stepped")
    expect(frames[0].header["session"] == game.watch, "the watcher's own token in 'session'", frames[0])


def _forbidden(game: Game, token: str, snapshot: str, more: Sequence[str]) -> None:
    """Check that a token permits nothing that is the owner's, nor the verbs named."""
    fields = {"restore": {"snapshot": snapshot}, "share": {"mode": "turns"}, "prompt": {"prompt": ""}}
    action = game.lab.actions(1)[0]
    fields |= {"step": {"step": game.step, "action": action}, "input": {"action": action}}
    for verb in ("reset", "snapshot", "restore", "fork", "run", "pause", "share", "close", *more):
        if verb == "keep":
            game.peer.refused("not-allowed", verb, sessions=[token])
        else:
            game.peer.refused("not-allowed", verb, session=token, **fields.get(verb, {}))
    game.peer.refused("not-allowed", "step_batch", sessions=[token], steps=[game.step], actions=[action])
    game.peer.refused("not-allowed", "reset_batch", sessions=[token], openings=[{}])
    game.peer.refused("not-allowed", "close_batch", sessions=[token])
    game.same()


@CHECKS.add("watch")
def _watch(lab: Lab) -> None:
    """A watcher gets no more frames than it has credits; missed frames are counted, and the newest comes first."""
    game, watcher = lab.open(), lab.peer()
    actions = lab.actions(7)
    watcher.ask("watch", session=game.watch, credits=3)
    drawn: dict[int, np.ndarray] = {}

    def play(count: int) -> None:
        for action in actions[:count]:
            game.play(action)
            drawn[game.step] = game.frame

    play(7)
    pushed = watcher.pushes(0.3)
    expect(len(pushed) == 3, "3 frames for 3 credits", len(pushed))
    expect([one.header["credits"] for one in pushed] == [2, 1, 0], "credits 2, 1, 0", pushed[-1])
    number = watcher.header("watch", session=game.watch, credits=2)
    watcher.must(number)
    play(3)
    more = watcher.pushes(0.3)
    expect(len(more) == 2, "2 frames for 2 more credits", len(more))
    expect(all(one.header["id"] == number["id"] for one in more), "the id of the last watch", more[-1])
    expect(more[0].header["step"] == min(drawn) + 6, f"the newest frame first, {min(drawn) + 6}", more[0])
    step = min(drawn) - 1
    for one in [*pushed, *more]:
        now = one.header["step"]
        expect(now > step and one.header["dropped"] == now - step - 1, f"{now - step - 1} dropped after {step}", one)
        equal(lab.frame(one), drawn[now], f"frame {now} as its step had it")
        step = now
    watcher.ask("watch", session=game.watch, credits=5)
    watcher.ask("unwatch", session=game.watch)
    watcher.pushes(0.1)
    game.play(*actions[:2])
    expect(not watcher.pushes(0.2), "no frames after unwatch", "some")


@CHECKS.add("share-turns")
def _share_turns(lab: Lab) -> None:
    """With turns a step out of turn is refused, and nothing is drawn; a player owns nothing."""
    game, second = lab.open(), lab.peer()
    snapshot = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    player = ""
    for every in (1, 2):
        player = game.peer.ask("share", session=game.token, mode="turns", every=every).header["player"]
        _forbidden(game, player, snapshot, ())
        for turn in range(2 * every + 1):
            mine = turn // every % 2 == 0
            tokens = [(game.peer, game.token), (second, player)][:: 1 if mine else -1]
            whose, other = ("owner", "player") if mine else ("player", "owner")
            error = tokens[1][0].refuse("not-your-turn", game.request() | {"session": tokens[1][1]})
            expect(error["turn"] == whose, f"turn {whose}, not {other}", error)
            game.take(tokens[0][0].must(game.request() | {"session": tokens[0][1]}))
        role = second.ask("render", session=player).header["role"]
        expect(role == "player", "role player", role)
    newest = game.peer.ask("share", session=game.token, mode="turns").header["player"]
    second.refused("no-session", "render", session=player)
    second.ask("render", session=newest)
    game.peer.refused("bad-field", "share", session=game.token, mode="turns", every=0)


@CHECKS.add("share-split")
def _share_split(lab: Lab) -> str:
    """With split the second player has its parts of the action, the first one the rest."""
    game, second = lab.open(), lab.peer()
    game.peer.refused("bad-field", "share", session=game.token, mode="split")
    game.peer.refused("bad-field", "share", session=game.token, mode="split", parts=["no-such-key"])
    game.peer.refused("bad-field", "share", session=game.token, mode="split", parts=[10**6])
    fork = game.fork()
    if isinstance(lab.space, spaces.Dict) or int(np.prod(lab.space.shape or ())) < 2:
        key = lab.keys(fork)[-1]
        player = game.peer.ask("share", session=game.token, mode="split", parts=[key]).header["player"]
        for keys in (key, "", key):
            second.ask("input", session=player, keys=keys)
            equal(game.play(keys=""), fork.play(keys=keys), f"the frame of the keys {keys!r}")
        return f"by the key {key}"
    parts = [int(np.prod(lab.space.shape or ())) - 1]
    player = game.peer.ask("share", session=game.token, mode="split", parts=parts).header["player"]
    for first, theirs in itertools.pairwise(lab.actions(4, seed=6)):
        both = np.array(first)
        both.reshape(-1)[parts] = np.ravel(theirs)[parts]
        second.ask("input", session=player, action=theirs)
        equal(game.play(first), fork.play(both.tolist()), "the frame of both actions together")
    return f"by the index {parts[0]}"
