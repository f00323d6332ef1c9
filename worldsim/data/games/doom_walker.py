"""A player for the Doom scenarios that goes where there is something to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    from worldsim.data.games.doom import View


class Mood(NamedTuple):
    """One way to play for a stretch of steps."""

    share: float  # how often it is chosen
    steps: tuple[int, int]  # shortest and longest stretch


MOODS = {
    "guided": Mood(0.48, (8, 30)),
    "turn": Mood(0.16, (2, 10)),
    "spin": Mood(0.04, (15, 36)),  # a full turn takes about 34 steps
    "idle": Mood(0.10, (2, 10)),
    "random": Mood(0.17, (4, 14)),
    "bump": Mood(0.05, (5, 10)),
}


class Walker:
    """Explores a scenario by the depth of what it sees, with stretches of everything else a player might do.

    A purely random player of such a game stares at walls. This one walks to open space and to medkits (or turns
    towards an enemy and shoots, where it cannot walk), and between such stretches turns, spins, stands still, bumps
    into walls and presses random keys, so that each action is seen in each situation. Each episode has its own skill.
    """

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode with a player of random habits."""
        self.rng = rng
        self.noise = float(rng.uniform(0.0, 0.12))  # share of random keys while guided
        self.greed = float(rng.uniform(0.5, 1.0))  # how often a medkit is a goal
        self.care = float(rng.uniform(0.3, 1.0))  # how often poison is avoided
        self.mood, self.left, self.held = "guided", 0, ""
        self.turn = self.turned = 0  # -1 or 1 while turning away from a wall; for how many steps
        self.greedy = self.careful = True
        return {}

    def act(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> int:
        """The next action of the current stretch, or of a new one when that is over."""
        game: Any = env.unwrapped  # a DoomGame
        view, controls = game.view, game.controls
        if self.left == 0:
            self._new_stretch(view, controls)
        self.left -= 1
        if self.mood == "guided":
            key = self._aim(view) if "space" in controls else self._walk(view)
            if self.rng.random() < self.noise:
                key = self._any(controls)
        else:
            if self.mood == "random" and self.rng.random() < 0.4:
                self.held = self._any(controls)
            key = self.held
        return controls.index(key)

    def _new_stretch(self, view: View, controls: tuple[str, ...]) -> None:
        self.mood = str(self.rng.choice(list(MOODS), p=[mood.share for mood in MOODS.values()]))
        can_walk, can_shoot = "up" in controls, "space" in controls
        if can_walk and view.depth[50:110].mean() < 14 and self.rng.random() < 0.85:
            self.mood = "guided"  # get away from the wall first
        elif (self.mood == "bump" and not can_walk) or (self.mood == "guided" and not (can_walk or can_shoot)):
            self.mood = "random"
        low, high = MOODS[self.mood].steps
        self.left = int(self.rng.integers(low, high + 1))
        self.greedy, self.careful = bool(self.rng.random() < self.greed), bool(self.rng.random() < self.care)
        side = str(self.rng.choice(["left", "right"]))
        if self.mood == "turn" and f"{side}+up" in controls and self.rng.random() < 0.4:
            side = f"{side}+up"
        self.held = {"idle": "", "bump": "up", "random": self._any(controls)}.get(self.mood, side)

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
