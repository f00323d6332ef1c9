"""Format the report of a first minute."""

from __future__ import annotations

from typing import Any

from worldsim.evaluation.intervals import shown
from worldsim.evaluation.realism import POWER


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    if "skipped" in report:
        return f"first minute: {report['skipped']}"
    head = f"{report['world']}, the first minute: {report['starts']} sessions of {report['steps']} steps each"
    lines = [head, f"told from real: {_power(report)}"]
    for name, origins in report["beginners"].items():
        for origin, found in origins.items():
            title = f"{name}, {found['steps']} steps" + (", from prompts" if origin == "prompts" else "")
            lines += ["", title, *_ages(found), *_whole(found)]
            if "rest" in found:
                lines += _rest(found["rest"])
    if "following" in report:
        lines += ["", _following(report["following"])]
    if report.get("recovery"):
        lines += [
            "",
            "a patch of noise in the last frames of context: distance of its place from the nearest real ones",
        ]
        for point, line in report["recovery"].items():
            cells = [f"{k} {shown(line[k], line[f'{k}_interval'], 1)}" for k in ("pasted", "unpasted", "difference")]
            lines.append(f"  {point:>4} frames on: {', '.join(cells)}")
    if first := report.get("first_frames"):
        wanted = (first.get("key_layout"), "palette", "sharpness", "sharpness_decoded")
        names = [name for name in wanted if name in first]
        cells = [f"{name.replace('_', ' ')} {shown(first[name], first[f'{name}_interval'])}" for name in names]
        lines += ["", f"{first['frames']} first frames from prompts: {', '.join(cells)}"]
    return "\n".join(lines)


def _power(report: dict[str, Any]) -> str:
    parts = [
        f"{name} frames are told at {value:.2f} (at least {POWER[name]})" for name, value in report["power"].items()
    ]
    return f"{'refused, ' if report['told_refused'] else ''}{', '.join(parts)}"


def _ages(found: dict[str, Any]) -> list[str]:
    """Format a line for each age."""
    lines = []
    for age, line in found["at"].items():
        told = shown(line["told"], line["told_interval"])
        ranges = shown(line["in_range"], line.get("in_range_interval"))
        text = f"  at {age:>4}: told from real {told}; in the reference ranges {ranges}"
        if line.get("real_in_range") is not None:
            out = [n for n in line["in_range_of"] if line[f"{n}_in_range"] < 0.75]
            text += f" (real {line['real_in_range']:.2f}{'; mostly out: ' + ', '.join(out) if out else ''})"
        lines.append(text)
    if base := found.get("baselines"):
        decoder = shown(base["decoder"], base["decoder_interval"])
        lines.append(f"  beside it: decoded from raw {decoder}, real {shown(base['itself'], base['itself_interval'])}")
    return lines


def _whole(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, line in found["layout"].items():
        value, real, away = (
            shown(line["mean"], line["interval"]),
            shown(line["real"], None),
            shown(line["distance"], None),
        )
        lines.append(f"  {name.replace('_', ' '):>14}: {value}, real {real}, distance {away}")
    for name in ("motion", "turning", "reward", "ended", "end_age", "end_reward"):
        value = shown(found[name], found[f"{name}_interval"])
        real = shown(found[f"real_{name}"], found[f"real_{name}_interval"])
        lines.append(f"  {name.replace('_', ' '):>14}: {value}, real {real}")
    if "palette" in found:
        lines.append(f"  {'palette kept':>14}: {shown(found['palette'], found['palette_interval'])}")
    return lines


def _rest(rest: dict[str, Any]) -> list[str]:
    lines = []
    for age, line in rest["at"].items():
        if line["median"] is None:
            continue
        over = shown(line["over"], line["over_interval"])
        text = f"block distance to step {rest['settled_after']}: {shown(line['median'], line['median_interval'], 1)}"
        lines.append(f"  at {age:>4}: {text}, over {line['limit']:g}: {over}, real {shown(line['real'], None, 1)}")
    for side in ("left", "right"):
        if f"turns_{side}" in rest:
            good = shown(rest[f"turns_{side}"], rest[f"turns_{side}_interval"])
            real = f"real {shown(rest[f'real_turns_{side}'], None)}"
            by = f"by {rest[f'turns_{side}_amount']:.1f} a step"
            lines.append(f"  a turn to the {side} afterwards goes there: {good}, {by}; {real}")
    return lines


def _following(found: dict[str, Any]) -> str:
    ratio = shown(found["shuffled_ratio"], found["shuffled_ratio_interval"])
    gain = shown(found["over_copy_db"], found["over_copy_db_interval"])
    text = f"following: error at frame {found['frames']} under shuffled actions over the right ones {ratio} "
    text += f"({shown(found['shuffled_db'], None)} dB); over copying {gain} dB"
    if found["read"] is not None:
        read, real = (
            shown(found["read"], found["read_interval"]),
            shown(found["real_read"], found["real_read_interval"]),
        )
        text += f"; keys read off drawn frames {read}, off real ones {real}, chance {found['chance']:.2f}"
    return text
