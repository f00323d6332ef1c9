"""Measure whether a world shows the events of a prompt: objects that appear, lights, fog, places.

A classifier that was trained on real frames with the game's own labels (`classifier`) detects events. An event has
happened if at least STEADY of the frames after its prompt, about a second of them, show it. The same starts without the
prompt give the rate of false detections, and the events of the recording give the rate at which the classifier detects
a real one. The events are those of the game's `EventBook`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.data.episodes import Dataset, Episode, read_episode
from worldsim.evaluation.classifier import Classifier, accuracy, examples
from worldsim.evaluation.event_book import Event, EventBook
from worldsim.evaluation.intervals import shown, wilson
from worldsim.evaluation.long_rollout import plan
from worldsim.evaluation.rollout import Runner, Segments, scripted
from worldsim.spaces import ActionCodec

STEADY = 3  # frames of those after its words that must show it
LATER = 12  # frames after which a start from a prompt is looked at again
STRIDE = 4  # frames between the places that a start may be at


@dataclass(frozen=True)
class Try:
    """A place in a recording where an event can be typed: frame `at` of an episode is the last one seen."""

    episode: int
    at: int
    scenario: str
    event: str


def target(event: Event) -> tuple[str, Any]:
    """Get the label that an event changes, and the value it changes to."""
    return (event.slot, event.value) if event.slot else (event.thing, True)


def possible(book: EventBook, episodes: list[Episode], context: int) -> dict[tuple[str, str], list[Try]]:
    """Find all places for each scenario and event.

    There nothing else is being told, no frame of the context shows what the event brings, and a thing has room ahead.
    """
    found: dict[tuple[str, str], list[Try]] = {}
    for i, episode in enumerate(episodes):
        for at in range(context - 1, len(episode) + 1 - book.frames, STRIDE):
            seen = [episode.prompts[k] for k in set(episode.prompt_index[at + 1 - context : at + 1].tolist())]
            last = episode.prompts[episode.prompt_index[at]]
            if last["event"]:
                continue
            for name, event in book.events.items():
                label, value = target(event)
                if any(prompt[label] == value for prompt in seen) or (event.thing and last[book.blocked]):
                    continue
                found.setdefault((last["scenario"], name), []).append(Try(i, at, last["scenario"], name))
    return found


def choose(
    book: EventBook,
    places: dict[tuple[str, str], list[Try]],
    count: int,
    held_out: bool,
    rng: np.random.Generator,
) -> list[Try]:
    """Choose up to `count` tries for each event over the scenarios it was trained in, or over those held out of it."""
    tries: list[Try] = []
    for name in book.events:
        pools = [
            [found[k] for k in rng.permutation(len(found))]
            for (scenario, event), found in places.items()
            if event == name and ((scenario, event) in book.held_out) == held_out
        ]
        turns = [pool[k] for k in range(max(map(len, pools), default=0)) for pool in pools if k < len(pool)]
        tries += turns[:count]
    return tries


def words(book: EventBook, label: dict[str, Any], event: Event | None, rng: np.random.Generator) -> str:
    """Write a prompt: the place, the event's words if any, and what lasts, as a recording words it."""

    def pick(wordings: Sequence[str]) -> str:
        return wordings[int(rng.integers(len(wordings)))]

    parts = [pick(book.places[label["scenario"]])]
    if event is not None:
        parts.append(pick(event.words))
    for state in book.events.values():
        lasts = state.slot and label[state.slot] == state.value and state.lasting
        if lasts and (event is None or state.slot != event.slot):
            parts.append(pick(state.lasting))
    return ", ".join(parts)


def happened(book: EventBook, classifier: Classifier, frames: Tensor, events: list[str]) -> Tensor:
    """Say whether each of some clips (N, book.frames, H, W, 3) shows its event, bool (N,)."""
    hits = torch.zeros(len(frames), dtype=torch.bool)
    for name in set(events):
        rows = [i for i, event in enumerate(events) if event == name]
        shows = classifier.shows(frames[rows].flatten(0, 1), *target(book.events[name])).unflatten(0, (len(rows), -1))
        hits[rows] = shows.sum(dim=1) >= STEADY
    return hits


class Events:
    """Tries events in a world.

    Args:
        book: the game's events.
        runner: predicts the frames.
        dataset: of the game.
        episodes: that the world was not trained on.
        classifier: detects the events.
        context: frames that the world sees before.
        seed: of the places, wordings and actions.
    """

    def __init__(
        self,
        book: EventBook,
        runner: Runner,
        dataset: Dataset,
        episodes: list[Episode],
        classifier: Classifier,
        context: int,
        seed: int,
    ) -> None:
        """Find the places."""
        self.book = book
        self.runner, self.dataset, self.episodes, self.classifier = runner, dataset, episodes, classifier
        self.context, self.seed = context, seed
        found = possible(book, episodes, context)
        self.places = {pair: tries for pair, tries in found.items() if self._judged(pair[1])}

    def run(self, count: int) -> tuple[dict[str, Any], list[np.ndarray], list[str]]:
        """Try each event `count` times in known pairs with scenarios and `count` times in those held out.

        Returns:
            The report; pictures, a row of `book.frames` for each of some tries; and the rows' captions.
        """
        report: dict[str, Any] = {"frames": self.book.frames, "steady": STEADY, "judge": self.judge()}
        pictures: list[np.ndarray] = []
        captions: list[str] = []
        for group, held_out in (("known", False), ("held_out", True)):
            rng = np.random.default_rng([self.seed, 40, held_out])
            tries = choose(self.book, self.places, count, held_out, rng)
            if not tries:
                continue
            drawn, control, prompts = self.draw(tries, rng)
            names = [one.event for one in tries]
            hits, false = (happened(self.book, self.classifier, clips, names) for clips in (drawn, control))
            report[group] = _summary(tries, hits, false)
            for name in dict.fromkeys(names):
                row = names.index(name)
                pictures += list(drawn[row].numpy())
                captions.append(f"{group}: {prompts[row]}")
        report["scenarios"] = self.scenarios(count)
        return report, pictures, captions

    def judge(self) -> dict[str, Any]:
        """Measure the classifier: on real frames, on the same frames through the autoencoder, and on real events."""
        encode, decode = self.runner.world.autoencoder.encode, self.runner.world.autoencoder.decode
        parts = [examples(episode, self.classifier.labels, every=8) for episode in self.episodes]
        frames, numbers = (torch.cat(part) for part in zip(*parts, strict=True))
        decoded = torch.cat([decode(encode(part)).cpu() for part in frames.split(64)])
        report: dict[str, Any] = {
            "real_frames": accuracy(self.classifier, frames, numbers),
            "decoded_frames": accuracy(self.classifier, decoded, numbers),
        }
        others = [read_episode(path) for path in self.dataset.episodes("unseen")[1::2]]  # it has learned from the rest
        for key, episodes in (("real_events", self.episodes), ("real_held_out", others)):
            clips = [(name, clip) for episode in episodes for name, clip in self._recorded(episode)]
            seen = self._seen(clips) if clips else None
            report[key] = None if seen is None else float(seen.float().mean())
            report[f"{key}_interval"] = None if seen is None else wilson(int(seen.sum()), len(seen))
            names = [name for name, _ in clips]
            report[f"{key}_by_event"] = {
                name: float(seen[[i for i, other in enumerate(names) if other == name]].float().mean())
                for name in dict.fromkeys(names)
                if seen is not None
            }
        return report

    def _seen(self, clips: list[tuple[str, Tensor]]) -> Tensor:
        names, frames = [name for name, _ in clips], torch.stack([clip for _, clip in clips])
        return happened(self.book, self.classifier, frames, names)

    def draw(self, tries: list[Try], rng: np.random.Generator) -> tuple[Tensor, Tensor, list[str]]:
        """Draw clips under the events' words and without them, uint8 (N, n, H, W, 3) each; and the prompts.

        Every second session holds no key, the others press random ones.
        """
        space, keys, context = self.runner.world.action_space, self.runner.world.card.keys, self.context
        length = self.book.frames
        frames, actions, before, taken, told, plain = [], [], [], [], [], []
        flat = {one.episode: ActionCodec(space).flatten(self.episodes[one.episode].actions) for one in tries}
        for i, one in enumerate(tries):
            episode, begin = self.episodes[one.episode], one.at + 1 - context
            frames.append(episode.frames[begin : one.at + 1 + length])
            actions.append(flat[one.episode][begin : one.at + length])
            before.append(episode.texts()[begin : one.at + 1 + length])
            pattern = "none" if i % 2 and "" in keys else "random"
            taken.append(ActionCodec(space).flatten_list(plan(pattern, keys, space, length, rng)))
            label = episode.prompts[episode.prompt_index[one.at]]
            told.append(words(self.book, label, self.book.events[one.event], rng))
            plain.append(words(self.book, label, None, rng))
        segments = Segments(
            frames=torch.from_numpy(np.stack(frames)),
            actions=torch.from_numpy(np.stack(actions)),
            prompts=before,
            sources=[one.episode for one in tries],
            context=context,
        )
        moves = torch.from_numpy(np.stack(taken))
        drawn, control = (
            self.runner.free(segments, scripted(moves, [[text] * length for text in texts]), length, title)
            for texts, title in ((told, "events"), (plain, "without events"))
        )
        return drawn, control, told

    def scenarios(self, count: int) -> dict[str, Any] | None:
        """Measure the share of starts from a place's prompt that show it, at once and LATER frames on."""
        known = [name for name in self.book.places if name in self.classifier.labels.get("scenario", ())]
        if not known:  # of a recording of one scenario
            return None
        prompts = [(name, place) for name in known for place in self.book.places[name]]
        prompts = (prompts * (-(-count // len(prompts)) or 1))[: max(count, len(prompts))]
        drawn = self.runner.from_prompts([place for _, place in prompts], LATER + 1)
        report: dict[str, Any] = {"starts": len(prompts)}
        for key, frames in (("first", drawn[:, 0]), ("later", drawn[:, -1])):
            hits = [
                bool(self.classifier.shows(frame.unsqueeze(0), "scenario", name))
                for frame, (name, _) in zip(frames, prompts, strict=True)
            ]
            report[key], report[f"{key}_interval"] = float(np.mean(hits)), wilson(sum(hits), len(hits))
        return report

    def _judged(self, name: str) -> bool:
        """Say whether the classifier has learned what an event changes: a small recording may not contain it."""
        label, value = target(self.book.events[name])
        return value in self.classifier.labels.get(label, ())

    def _recorded(self, episode: Episode) -> Iterator[tuple[str, Tensor]]:
        """Find the real events by name, and the frames from each on."""
        names = [episode.prompts[k]["event"] for k in episode.prompt_index]
        for at in range(1, len(names) + 1 - self.book.frames):
            name = names[at]
            if name in self.book.events and self._judged(name) and names[at - 1] != name:
                yield name, torch.from_numpy(episode.frames[at : at + self.book.frames])


def _summary(tries: list[Try], hits: Tensor, false: Tensor) -> dict[str, Any]:
    """Compute shares over all tries and by event."""
    report: dict[str, Any] = {
        "tries": len(tries),
        "happened": float(hits.float().mean()),
        "happened_interval": wilson(int(hits.sum()), len(hits)),
        "without_words": float(false.float().mean()),
        "without_words_interval": wilson(int(false.sum()), len(false)),
        "by_event": {},
    }
    for name in dict.fromkeys(one.event for one in tries):
        rows = [i for i, one in enumerate(tries) if one.event == name]
        report["by_event"][name] = {
            "tries": len(rows),
            "happened": float(hits[rows].float().mean()),
            "without_words": float(false[rows].float().mean()),
        }
    return report


def has_events(book: EventBook, episodes: list[Episode]) -> bool:
    """Say whether the prompts of a recording are labelled with the scenarios and events of a game."""
    return all(book.labels() <= set(prompt) for episode in episodes for prompt in episode.prompts)


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    if "skipped" in report:
        return f"events: {report['skipped']}"
    judge, scenarios = report["judge"], report["scenarios"]
    lines = [f"events that happened within {report['frames']} frames of their words:"]
    for group in ("known", "held_out"):
        if group not in report:
            continue
        found = report[group]
        share, control = (shown(found[key], found[f"{key}_interval"]) for key in ("happened", "without_words"))
        lines.append(f"  {group.replace('_', ' ')} pairs: {share} of {found['tries']}, without the words {control}")
        for name, one in found["by_event"].items():
            lines.append(f"{name:>16} {one['happened']:.2f} (without {one['without_words']:.2f}) of {one['tries']}")
    seen, held = (shown(judge[key], judge[f"{key}_interval"]) for key in ("real_events", "real_held_out"))
    lines.append(f"  the judge sees {seen} of the real events, {held} of real ones in held out pairs")
    for name, share in judge["real_events_by_event"].items():
        lines.append(f"{name:>16} {share:.2f}")
    lines.append("  by label, on real and on decoded frames:")
    for name, real in judge["real_frames"].items():
        decoded = judge["decoded_frames"][name]
        keys = [key for key in real if key != "frames"]
        said = ", ".join(f"{key} {real[key]:.3f} / {decoded[key]:.3f}" for key in keys)
        lines.append(f"{name:>16} {said} ({real['frames']} frames)")
    if scenarios is not None:
        ends = [shown(scenarios[key], scenarios[f"{key}_interval"]) for key in ("first", "later")]
        lines.append(f"  fresh starts that show the named scenario: {ends[0]}, {LATER} frames on {ends[1]}")
    return "\n".join(lines)
