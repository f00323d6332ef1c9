"""The window: it handles events and shows pictures at the pace of the game."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pygame

from worldsim.demos import controls
from worldsim.demos.controls import PressedKeys
from worldsim.demos.line import PromptLine
from worldsim.demos.saving import Saver
from worldsim.demos.screen import Screen, show
from worldsim.demos.session import Session
from worldsim.demos.view import Overlay, view_of
from worldsim.errors import SessionError, WorldsimError

SHORT, LONG = 4.0, 9.0  # seconds that a message stays, and one that is a warning
OVER = "The episode is over. R begins a new one."
OVER_BUT = "The episode is over. R begins a new one, Backspace goes back."
READY = "Press a key to begin: the keys below play, Tab types a prompt, H shows the others."
FRAMES_MEANWHILE = 20  # a second, while something takes long
IDLE = 0.25  # seconds between looks at the keyboard when nothing moves


class Player:
    """Plays a session in the window.

    Args:
        session: to be played.
        screen: draws it.
        folder: where screenshots, videos and episodes go.
        name: what their file names begin with.
        fps: steps per second.
    """

    def __init__(self, session: Session, screen: Screen, *, folder: Path, name: str, fps: float) -> None:
        """Make the window as large as the canvas."""
        self.session, self.screen, self.fps = session, screen, fps
        self.saver = Saver(session, screen, folder, name, fps)
        self.pressed, self.line = PressedKeys(), PromptLine()
        self.running, self.paused, self.helping, self.full = True, False, False, False
        self.waiting = True  # for the player's first key: an episode may begin at speed, and nobody is ready
        self.total_steps = 0
        self._message, self._bad, self._until = "", False, 0.0
        self._stepped_at: deque[float] = deque(maxlen=30)
        self._pads: dict[int, Any] = {}
        self._commands = {key: method for keys, method, _ in controls.COMMANDS for key in keys}
        pygame.joystick.init()
        pygame.key.stop_text_input()  # only while typing: input methods would catch the letters that play
        pygame.display.set_mode(screen.canvas.get_size(), pygame.RESIZABLE)
        self.present()

    def run(self, steps: int = 0) -> None:
        """Play until the window is closed, or for `steps` steps."""
        due = time.perf_counter()
        self.waiting = self.waiting and not steps  # there may be no player
        try:
            while self.running and not 0 < steps <= self.total_steps:
                if steps and self.session.over and not self.rewinding:
                    self.reset()
                    self.waiting = False
                if not self.moving:
                    changed, due = self.poll(IDLE), time.perf_counter()
                    self._stepped_at.clear()
                else:
                    changed = self.poll(due - time.perf_counter())
                    if (now := time.perf_counter()) >= due and self.moving:
                        if self.rewinding:
                            self.rewind()
                        else:
                            self.step()
                        changed, due = True, max(due + 1 / self.fps, now)
                if changed or 0 < self._until <= time.perf_counter():
                    self.present()
        finally:
            self.saver.stop_video()
            pygame.key.set_repeat()

    def poll(self, seconds: float = 0.0) -> bool:
        """Handle events until one changes the picture, for up to `seconds`; return whether one did."""
        changed = False
        until = time.perf_counter() + seconds
        while True:
            for event in pygame.event.get():
                changed = self.handle(event) or changed
            left = until - time.perf_counter()
            if changed or left <= 0.001:  # the clock of events counts milliseconds
                return changed
            changed = self.handle(pygame.event.wait(int(1000 * left)))

    def step(self) -> None:
        """Make one step under the pressed keys."""
        self.session.step(self.pressed.names())
        self.total_steps += 1
        self._moved()

    def rewind(self) -> None:
        """Take one step back, or stay at the oldest stored state; see `Session.rewind` for what it raises."""
        self.session.rewind()
        self._moved()

    def _moved(self) -> None:
        self._stepped_at.append(time.perf_counter())
        if self.saver.recorded is not None:
            self._draw()
            self._try(self.saver.add_frame)
        self.pressed.stepped()

    @property
    def rewinding(self) -> bool:
        """Whether the rewind key is pressed, or was tapped since the last step."""
        return "rewind" in self.pressed.names()

    @property
    def moving(self) -> bool:
        """Whether there is a step to make or to take back; the game waits while a prompt is typed."""
        return self.rewinding or not (self.paused or self.waiting or self.line.open or self.session.over)

    @property
    def reached_fps(self) -> float:
        """Steps per second over the last ones; 0 before the second."""
        times = self._stepped_at
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def handle(self, event: pygame.event.Event) -> bool:
        """React to an event; return whether this changed the picture."""
        kind = event.type
        if kind == pygame.QUIT:
            self.running = False
        elif kind == pygame.KEYDOWN:
            return self._key_down(event.key)
        elif kind == pygame.KEYUP:
            return self.pressed.hold(event.key, "")
        elif kind == pygame.TEXTINPUT and self.line.open:
            self.line.type(event.text)
        elif kind == pygame.WINDOWFOCUSLOST:
            self.pressed.release()  # the release of a key would go elsewhere
        elif kind == pygame.JOYAXISMOTION and event.axis in controls.AXES:
            return self.pressed.hold(
                (event.instance_id, "axis", event.axis), controls.axis_key(event.axis, event.value)
            )
        elif kind == pygame.JOYHATMOTION:
            across, along = controls.hat_keys(event.value)
            moved = self.pressed.hold((event.instance_id, "across"), across)
            return self.pressed.hold((event.instance_id, "along"), along) or moved
        elif kind in (pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP):
            return self._button(event)
        elif kind == pygame.JOYDEVICEADDED:
            pad = pygame.joystick.Joystick(event.device_index)  # sends events as long as it is kept
            self._pads[pad.get_instance_id()] = pad
        elif kind == pygame.JOYDEVICEREMOVED:
            self._pads.pop(event.instance_id, None)
            self.pressed.release()
        else:
            return kind in (pygame.WINDOWEXPOSED, pygame.WINDOWSIZECHANGED)
        return True

    def _key_down(self, code: int) -> bool:
        name = {"enter": "return"}.get(pygame.key.name(code), pygame.key.name(code).strip("[]"))  # as on the keypad
        if self.line.open:
            if self.pressed.holds(code):  # was down before, and only repeats
                return False
            return self._key_in_line(name)
        if name != "escape" and self.session.first.keymap.knows(name):
            self.waiting = False
            return self.pressed.hold(code, name)
        command = self._commands.get(name, "")
        if command == "rewind" and self.session.can_rewind:
            return self.pressed.hold(code, command)  # no key of a game has this name
        return bool(command) and self._do(command)

    def _key_in_line(self, name: str) -> bool:
        if name not in ("return", "escape"):
            self.line.key(name)
            return True
        text = self.line.close()
        pygame.key.stop_text_input()
        pygame.key.set_repeat()
        if name == "return":
            self._try(lambda: self._meanwhile("Reading the prompt ...", lambda: self.session.set_prompt(text)))
        return True

    def _meanwhile(self, message: str, action: Callable[[], Any]) -> None:
        """Do what may take seconds, while the window goes on; keys that are pressed meanwhile are for no one.

        Someone who sees nothing happen presses Enter again: taken late, it would open the line again, and the keys
        that play would be dead.
        """
        with ThreadPoolExecutor(1) as worker:
            done = worker.submit(action)
            self._say(message)
            while not done.done():
                self.present()
                wait([done], timeout=1 / FRAMES_MEANWHILE)
                for event in pygame.event.get(exclude=pygame.KEYDOWN):
                    self.handle(event)
        pygame.event.clear((pygame.KEYDOWN, pygame.TEXTINPUT))
        self._message = ""
        done.result()

    def _button(self, event: pygame.event.Event) -> bool:
        down = event.type == pygame.JOYBUTTONDOWN
        if event.button in controls.PAD_COMMANDS:
            return down and self._do(controls.PAD_COMMANDS[event.button])
        name = controls.button_key(event.button, self.session.first.keymap) if down else ""
        self.waiting = self.waiting and not name
        return self.pressed.hold((event.instance_id, "button", event.button), name)

    def _do(self, command: str) -> bool:
        self.helping = self.helping and command in ("help", "quit")
        self._try(getattr(self, command))
        return True

    def _try(self, action: Callable[[], Any]) -> None:
        """Do `action`; show its error, if any, and go on."""
        try:
            action()
        except (WorldsimError, OSError) as error:
            self._say(str(error), bad=True)

    def _say(self, message: str, bad: bool = False) -> None:
        self._message, self._bad = message, bad
        self._until = time.perf_counter() + (LONG if bad else SHORT)

    def type_prompt(self) -> None:
        """Open the prompt line. Raises PromptError if none is taken."""
        self.session.check_prompts()
        self.line.begin(self.session.prompt or self.session.first.prompt, self.session.prompts)
        pygame.key.start_text_input()
        pygame.key.set_repeat(400, 40)

    def reset(self) -> None:
        """Begin a new episode, with the player's first key."""
        self.session.reset()
        self._message, self.waiting = "", True

    def pause(self) -> None:
        """Pause, or go on."""
        self.paused, self.waiting = not self.paused, False

    def single_step(self) -> None:
        """Make one step. Raises SessionError when not paused."""
        if not self.paused:
            raise SessionError("Single steps are for when the game is paused: press P first.")
        if not self.session.over:
            self.step()

    def screenshot(self) -> None:
        """Save the view, without the overlay."""
        self._draw()
        self._say(self.saver.picture())

    def record(self) -> None:
        """Start recording video, or stop."""
        if self.saver.recorded is None:
            self.saver.start_video()
        else:
            self._say(self.saver.stop_video())

    def save(self) -> None:
        """Save the steps since the last reset as an episode to train on."""
        self._say(self.saver.episode())

    def full_screen(self) -> None:
        """Fill the screen, or go back to a window."""
        self.full = not self.full
        size, flags = ((0, 0), pygame.FULLSCREEN) if self.full else (self.screen.canvas.get_size(), pygame.RESIZABLE)
        pygame.display.set_mode(size, flags)

    def help(self) -> None:
        """Show or hide the help."""
        self.helping = not self.helping

    def quit(self) -> None:
        """Close the help if it is open, else leave the full screen, else the window."""
        if self.full and not self.helping:
            self.full_screen()
            return
        self.running, self.helping = self.helping, False

    def _draw(self) -> None:
        footer = controls.TYPING if self.line.open else controls.FOOTER
        names = self.pressed.names()
        self.screen.draw(view_of(self.session, names, footer=footer, fps=self.reached_fps, line=self.line))

    def present(self) -> None:
        """Draw everything and show it."""
        if 0 < self._until <= time.perf_counter():
            self._message, self._until = "", 0.0
        self._draw()
        recorded = self.saver.recorded
        over = OVER_BUT if len(self.session.past) else OVER
        self.screen.overlay(
            Overlay(
                message=self._message or (over if self.session.over else READY if self.waiting else ""),
                bad=self._bad,
                recording="" if recorded is None else f"REC {recorded:.0f} s",
                paused="PAUSED" if self.paused else "",
                rewinding=f"REWIND {len(self.session.past) / self.fps:.1f} s left" if self.rewinding else "",
                help=controls.help_rows(self.session.first.keymap) if self.helping else (),
                choices=self.line.examples if self.line.open else (),
                chosen=self.line.example,
            )
        )
        show(self.screen.canvas)
