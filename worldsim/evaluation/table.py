"""Format a report of `worldsim eval`."""

from __future__ import annotations

from typing import Any

from worldsim.evaluation import events, long_rollout, memory, minute_table
from worldsim.evaluation.intervals import shown


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    if "beginners" in report or "skipped" in report:
        return minute_table.table(report)
    lines = [f"{report['world']} on {report['episodes']} {report['split']} episodes of {report['data']}"]
    stages = [name for name in report if name == "next_frame" or name.startswith("frame_")]
    if stages:
        lines += ["", *_comparison(report, stages)]
    for stage in stages:
        found = report[stage]
        names = ("over_copy", "over_shuffled", "told", "truth_in_range")
        parts = [f"{name.replace('_', ' ')} {_sure(found, name)}" for name in names if found.get(name) is not None]
        if parts:
            lines.append(f"{stage.replace('_', ' ')}: {', '.join(parts)}")
    lines.append("")
    for stage in ("autoencoder", "steering", "free_run", "features"):
        if report.get(stage):
            lines.append(f"{stage.replace('_', ' ')}: {_list(report[stage])}")
    for name, value in report.get("palette", {}).items():
        lines.append(f"palette, {name}: {_list(value) if isinstance(value, dict) else _cell(value)}")
    for name, module in (("long_rollout", long_rollout), ("memory", memory), ("events", events)):
        if name in report:
            lines.append(module.table(report[name]))
    return "\n".join(lines)


def _comparison(report: dict[str, Any], stages: list[str]) -> list[str]:
    """Format a line for each stage that has frames to compare."""
    head = ("PSNR", "copy", "shuffled", "moving", "copy", "SSIM", "copy", "sharp", "bright", "in range", "frames")
    keys = ("psnr", "copy_psnr", "shuffled_psnr", "moving_psnr", "copy_moving_psnr", "ssim", "copy_ssim")
    keys = (*keys, "sharpness", "brightness", "in_range", "frames")
    wide = {"psnr": 22, "in_range": 20}
    lines = [f"{'':>11}" + "".join(f"{name:>{wide.get(key, 9)}}" for name, key in zip(head, keys, strict=True))]
    for stage in stages:
        cells = "".join(f"{_sure(report[stage], key):>{wide.get(key, 9)}}" for key in keys)
        lines.append(f"{stage.replace('_', ' '):>11}{cells}")
    return lines


def _sure(values: dict[str, Any], key: str) -> str:
    """Format a figure with its interval, if it has one."""
    value = values.get(key)
    return shown(value, values.get(f"{key}_interval")) if isinstance(value, float) else _cell(value)


def _list(values: dict[str, Any]) -> str:
    parts = {f"{name}_in_range" for name in values.get("in_range_of") or ()}  # for the JSON alone
    named = [key for key in values if not key.endswith("_interval") and key not in parts]
    return ", ".join(f"{key.replace('_', ' ')} {_sure(values, key)}" for key in named)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
