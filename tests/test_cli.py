"""The command line: every verb explains itself, and what goes wrong is said in one line."""

import dataclasses
import subprocess
import sys
from importlib.metadata import version

import pytest

from worldsim import cli
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.renamed import OPTIONS


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*verb.split(), "--help"])
    assert exit_.value.code == 0
    assert (cli.VERBS[verb].__doc__ or "").splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_usage_and_version(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert cli.main(args) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("worldsim-engine")


def test_list(capsys):
    pytest.importorskip("Box2D")
    assert cli.main(["record", "--list"]) == 0
    out = capsys.readouterr().out
    assert "car-racing" in out and "doom" in out and "CartPole-v1" in out


def test_record_and_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "record CartPole-v1 --frames 25 --max-episode-steps 10 --workers 1 --frame-size 16 24 --prompt".split()
    assert cli.main([*words, "a pole"]) == 0
    assert capsys.readouterr().out.startswith("data/CartPole-v1: 3 train")
    assert cli.main("data sheet data/CartPole-v1 --out s.png --columns 3".split()) == 0
    assert (tmp_path / "s.png").is_file()
    assert cli.main([*words, "another"]) == 2
    assert 'prompt was "a pole", is "another"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("recrod", "worldsim: unknown verb 'recrod'. Did you mean 'record'?"),
        ("data", "unknown verb 'data'. Known: "),
        ("record CartPole-v9", "neither a recipe nor"),
        ("data sheet nowhere", "no dataset at nowhere"),
    ],
)
def test_errors_are_one_line_and_2(words, says, capsys):
    pytest.importorskip("Box2D")  # an unknown game is looked for among the recipes
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("words", ["record", "record CartPole-v1 --frmes 3", "record CartPole-v1 --frames many"])
def test_wrong_words(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(words.split())
    assert exit_.value.code == 2
    assert capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "record", stop)
    assert cli.main(["record"]) == 130
    assert capsys.readouterr().err == "worldsim: stopped\n"


def test_the_command_is_installed_and_light():
    code = "import sys, worldsim.cli; sys.exit(bool({'torch', 'gymnasium', 'tyro', 'pygame'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    run = subprocess.run(
        [sys.executable, "-m", "worldsim.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == version("worldsim-engine")


@pytest.mark.parametrize(("verb", "old"), [(verb, old) for verb, names in OPTIONS.items() for old in names])
def test_an_option_of_before_is_refused_by_its_new_name(verb, old, capsys):
    new = OPTIONS[verb][old]
    for words in ([f"--{old}", "3"], [f"--{old}=3"], [f"--{old.replace('-', '_')}"]):
        assert cli.main([*verb.split(), *words]) == 2
        assert f"--{old} is called --{new} now" in capsys.readouterr().err
    for more in ([], ["--objective", "flow"]) if verb == "train dynamics" else ([],):
        with pytest.raises(SystemExit):
            cli.main([*verb.split(), *more, "--help"])
    options = set(capsys.readouterr().out.replace(",", " ").split())
    assert f"--{new}" in options and f"--{old}" not in options


def test_a_saved_sampler_of_before_is_read():
    old = {"steps": 3, "first_steps": 4, "temperature": 0.5, "shared_noise": 0.25, "guidance": 2.0}
    config = SamplerConfig.of(old, guidance=None, history_sigma=0.3)
    assert (config.num_denoising_steps, config.first_frame_steps, config.noise_scale) == (3, 4, 0.5)
    assert (config.spatially_shared_noise, config.guidance, config.history_sigma) == (0.25, 2.0, 0.3)
    assert SamplerConfig.of({**old, "num_denoising_steps": 5}).num_denoising_steps == 5
    assert SamplerConfig.of(dataclasses.asdict(config)) == config
