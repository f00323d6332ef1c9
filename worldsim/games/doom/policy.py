"""A scripted policy for the Doom scenarios: it goes where there is something to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from worldsim.games.doom.events import plan_events
from worldsim.games.doom.scenarios import SCENARIOS

if TYPE_CHECKING:
    from worldsim.games.doom.view import View

EPISODE_STEPS = 400
EVENTFUL = 0.75  # of the episodes of all scenarios have events
GLANCE = (4, 32)  # steps turned away and back
STOP = 8  # steps without a key until a player who walked stands still
HORIZON = 30  # tics that who dodges thinks ahead
SAFE = 60.0  # map units: a fireball that passes at this distance is no danger
STRIDE = 7.3  # map units a tic, the speed of stepping aside
HALL = (16.0, 752.0)  # where the player can be in the hall of `take_cover`
STILL, RANDOM = (
    0.08,
    0.6,
)  # of the episodes of `take_cover` are played by who only stands, or presses any key: short ones


class Mood(NamedTuple):
    """One way to play for a stretch of steps."""

    share: float  # how often it is chosen
    steps: tuple[int, int]  # shortest and longest stretch


MOODS = {
    "guided": Mood(0.46, (8, 30)),
    "turn": Mood(0.14, (2, 10)),
    "spin": Mood(0.03, (15, 36)),  # a full turn takes about 34 steps
    "idle": Mood(0.10, (2, 10)),
    "random": Mood(0.17, (4, 14)),
    "bump": Mood(0.05, (5, 10)),
    "glance": Mood(0.05, (1, 1)),
}
DODGING = {  # for who dodges: the rest of the time is guided
    "turn": Mood(0.05, (1, 5)),
    "idle": Mood(0.06, (2, 8)),
    "random": Mood(0.09, (3, 10)),
    "glance": Mood(0.03, (1, 1)),
}


class DoomPolicy:
    """Explores a scenario by the depth of what it sees, with stretches of everything else a player might do.

    A purely random player of such a game stares at walls. This one walks to open space and to medkits (or turns
    towards an enemy and shoots, or steps aside from fireballs), and between such stretches turns, spins, stands still,
    bumps into walls, looks away and back, and presses random keys, so that each action is seen in each situation. Each
    episode has its own skill.
    """

    def __init__(self, scenario: str | None = None) -> None:
        """Play `scenario` without events; or draw the scenario of each episode, and its events."""
        self.scenario = scenario

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode with a player of random habits."""
        self.rng = rng
        self.noise = float(rng.uniform(0.0, 0.12))  # share of random keys while guided
        self.greed = float(rng.uniform(0.5, 1.0))  # how often a medkit is a goal
        self.care = float(rng.uniform(0.3, 1.0))  # how often poison is avoided
        self.mood, self.left, self.held = "guided", 0, ""
        self.turn = self.turned = 0  # -1 or 1 while turning away from a wall; for how many steps
        self.greedy = self.careful = True
        self.script: list[str] = []  # keys to press before anything else
        self.sight = float(rng.uniform(80, 400))  # map units: fireballs are dodged when they are nearer than that
        self.discipline = min(float(rng.uniform(0.3, 1.2)), 1.0)  # how much of the time fireballs are dodged
        fate = rng.random()
        self.dodger = "still" if fate < STILL else "random" if fate < STILL + RANDOM else "dodge"
        if self.scenario:
            return {}
        scenario = str(rng.choice(list(SCENARIOS), p=[scenario.share for scenario in SCENARIOS.values()]))
        eventful = split == "unseen" or rng.random() < EVENTFUL
        return {"scenario": scenario, "events": plan_events(scenario, split, EPISODE_STEPS, rng) if eventful else []}

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> int:
        """Choose the next action of the current span, or of a new one when that is over."""
        game: Any = env.unwrapped  # a DoomGame
        view, controls, style = game.view, game.controls, SCENARIOS[game.scenario].style
        if self.script:
            return controls.index(self.script.pop(0))
        if self.left == 0:
            self._new_stretch(view, controls, style)
        self.left -= 1
        if self.mood == "glance":
            return controls.index(self.script.pop(0))
        if self.mood == "guided":
            key = {"aim": self._aim, "walk": self._walk}.get(style, self._dodge)(view)
            if style == "dodge" and "a" in controls:
                key = {"left": "a", "right": "d"}.get(key, key)
            if self.rng.random() < self.noise:
                key = self._any(controls)
        else:
            if self.mood == "random" and self.rng.random() < 0.4:
                self.held = self._any(controls)
            key = self.held
        return controls.index(key)

    def _new_stretch(self, view: View, controls: tuple[str, ...], style: str) -> None:
        if style == "dodge":
            self.mood = self._dodging_mood(controls)
        else:
            self.mood = str(self.rng.choice(list(MOODS), p=[mood.share for mood in MOODS.values()]))
            if style == "walk" and view.depth[50:110].mean() < 14 and self.rng.random() < 0.85:
                self.mood = "guided"  # get away from the wall first
            elif self.mood == "bump" and "up" not in controls:
                self.mood = "random"
        low, high = MOODS[self.mood].steps if style != "dodge" else DODGING.get(self.mood, MOODS[self.mood]).steps
        self.left = int(self.rng.integers(low, high + 1))
        self.greedy, self.careful = bool(self.rng.random() < self.greed), bool(self.rng.random() < self.care)
        side = str(self.rng.choice(["left", "right"]))
        if self.mood == "glance":
            other, away = ("right" if side == "left" else "left"), int(self.rng.integers(GLANCE[0], GLANCE[1] + 1))
            # it takes a while to stand; and without a pause the way back would start faster than the way there
            self.script = [*[""] * STOP, *[side] * away, "", *[other] * away, ""]
        if self.mood == "turn" and f"{side}+up" in controls and self.rng.random() < 0.4 and style != "dodge":
            side = f"{side}+up"
        self.held = {"idle": "", "bump": "up", "random": self._any(controls)}.get(self.mood, side)

    def _dodging_mood(self, controls: tuple[str, ...]) -> str:
        """Mostly what the player of this episode is good at."""
        draw = self.rng.random()
        for name, mood in DODGING.items():
            if draw < mood.share and "a" in controls:  # with arrows that step aside there is nothing to turn
                return name
            draw -= mood.share
        if self.dodger == "dodge" and self.rng.random() < self.discipline:
            return "guided"
        return "idle" if self.dodger == "still" else "random"

    def _dodge(self, view: View) -> str:
        """Step to where the fireballs that have come near will pass at the greatest distance."""
        balls = [t for t in view.things if t.kind == "fireball" and t.ahead < self.sight]
        if not balls and self.rng.random() < 0.8:
            return self.held if self.held in ("left", "right") else ""
        start = np.array([[ball.ahead, ball.left] for ball in balls]).reshape(-1, 1, 2)
        motion = np.array([ball.motion for ball in balls]).reshape(-1, 1, 2)
        tics = np.arange(1, HORIZON + 1)
        paths = start + motion * tics[None, :, None]  # (balls, tics, 2)
        best, choice = -np.inf, ""
        for key, way in (("", 0.0), ("left", 1.0), ("right", -1.0)):
            for stop in (HORIZON,) if key == "" else (6, 14, HORIZON):
                across = self._slide(view, way, stop)
                score = 0.0
                if balls:
                    miss = np.hypot(paths[..., 0], paths[..., 1] - across).min()
                    score = min(float(miss), SAFE)
                score -= 0.02 * abs(view.place[1] + across[-1] - sum(HALL) / 2) + 0.3 * (key == "")
                if score > best:
                    best, choice = score, key
        self.held = choice
        return choice

    def _slide(self, view: View, way: float, stop: int) -> np.ndarray:
        """Where the player will be, to the left of here, in each of the next tics: speed decays as the game's does."""
        speed, across, path = view.motion[1], 0.0, []
        for tic in range(HORIZON):
            speed += ((way * STRIDE if tic < stop else 0.0) - speed) * 0.094
            across = float(np.clip(across + speed, HALL[0] - view.place[1], HALL[1] - view.place[1]))
            path.append(across)
        return np.array(path)

    def _walk(self, view: View) -> str:
        """Head for a medkit or for the most open column; turn on the spot when a wall is near."""
        ahead = view.depth[60:100].astype(float).mean()
        if ahead < 10 and self.turn == 0:
            more_open = 1 if view.depth[80:].mean() > view.depth[:80].mean() else -1
            self.turn, self.turned = more_open if self.rng.random() < 0.85 else -more_open, 0
        if ahead > 18 - self.turned / 3:  # in a small room, less and less will do
            self.turn = 0
        if self.turn:
            self.turned += 1
            return "left" if self.turn < 0 else "right"
        goals = [thing.x for thing in view.things if thing.kind in ("medkit", "armor")]
        if goals and self.greedy:
            column = goals[0]
        else:
            # a body is about 25 columns wide at the distance that matters; the small slope prefers what is ahead
            openness = np.convolve(np.pad(view.depth.astype(float), 12, mode="edge"), np.ones(25) / 25, mode="valid")
            openness -= 0.1 * np.abs(np.arange(160) - 80)
            for thing in view.things:
                if thing.kind == "poison" and self.careful:
                    openness[max(int(thing.x) - 20, 0) : int(thing.x) + 20] -= 30
            column = float(openness.argmax())
        offset = (column - 80) / 80
        if abs(offset) < 0.12:
            return "up"
        side = "left" if offset < 0 else "right"
        return f"{side}+up" if abs(offset) < 0.6 else side

    def _aim(self, view: View) -> str:
        """Turn towards the nearest enemy and shoot once it is in the middle; turn on to look for one."""
        if not view.things:
            self.turn = self.turn or int(self.rng.choice([-1, 1]))
            return "left" if self.turn < 0 else "right"
        self.turn = 0
        offset = view.things[0].x - 80
        return "space" if abs(offset) < 8 else "left" if offset < 0 else "right"

    def _any(self, controls: tuple[str, ...]) -> str:
        return controls[self.rng.integers(len(controls))]
