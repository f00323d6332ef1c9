"""The card of an agent may be a stranger's: what it says is bounded before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gymnasium import spaces

from worldsim.errors import DataError
from worldsim.spaces import space_to_json


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_size": [10**9, 10**9]}, {"frame_size": [4]}, {"frame_size": "ab"}, {"stack": 10**9}, {"stack": "3"},
        {"action_repeat": 0}, {"action_space": {"type": "discrete", "n": 10**12, "start": 0}}, {"action_space": []},
        {"actions": {}}, {"actions": 3}, {"training": []}, {"game": None}, {"unknown": 1}, {"progress": {"a": 1e999}},
        {"format_version": 9}, {"format": "other"},
    ],
)  # fmt: skip
def test_a_hostile_agent_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    pytest.importorskip("stable_baselines3")
    from worldsim.agents.agent import AgentCard, read_agent_card

    good = dataclasses.asdict(
        AgentCard(
            game="x", frame_size=(24, 24), action_space=space_to_json(spaces.Discrete(2)), actions={"a": 0, "b": 1}
        )
    )
    (tmp_path / "agent.json").write_text(json.dumps(good))
    assert read_agent_card(tmp_path).stack == 3
    (tmp_path / "agent.json").write_text(json.dumps(good | changes).replace("Infinity", "1e999"))
    with pytest.raises(DataError, match="damaged|format and version"):
        read_agent_card(tmp_path)
