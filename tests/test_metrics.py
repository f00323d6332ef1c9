"""What is measured of frames: known values, known shifts, known colours."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image, ImageDraw

from worldsim.evaluation import metrics
from worldsim.evaluation.steering import direction, held, orbit, pan, steer_of, turns
from worldsim.games.car_racing.palettes import GROUNDS, ROADS, Palette
from worldsim.games.car_racing.roads import PALETTES, RoadPolicy, best_palettes, look
from worldsim.spaces import ActionCodec


def noise(frames: int = 3, side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8)


def texture(height: int, width: int, seed: int) -> Image.Image:
    """Smooth random blobs: a picture whose motion can be seen."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def frame(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((64, 64), Image.Resampling.BOX)))


def test_psnr():
    truth = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    assert metrics.psnr(truth, truth) == math.inf
    assert metrics.psnr(truth + 5, truth) == pytest.approx(20 * math.log10(255 / 5))
    assert metrics.psnr(truth - 5, truth) == metrics.psnr(truth + 5, truth)
    assert math.isnan(metrics.psnr(truth[:0], truth[:0]))
    half = truth.clone()
    half[0] += 10  # pooled: the perfect frame does not make the mean infinite
    assert metrics.psnr(half, truth) == pytest.approx(10 * math.log10(255**2 / 50))


@pytest.mark.parametrize("side", [64, 8])
def test_ssim(side):
    frames = torch.stack([frame(texture(64, 64, seed)) for seed in range(3)])[:, :side, :side]
    assert metrics.ssim(frames, frames).allclose(torch.ones(3))
    slight = (frames.float() + 8 * torch.randn(frames.shape)).clamp(0, 255).to(torch.uint8)
    assert (metrics.ssim(slight, frames) > metrics.ssim(noise(3, side), frames)).all()
    assert metrics.ssim(slight, frames).allclose(metrics.ssim(frames, slight))
    assert (metrics.ssim(frames + 0, 255 - frames) < (0.2 if side == 64 else 0.3)).all()  # of four places


def test_sharpness_brightness_entropy():
    flat = torch.full((1, 16, 16, 3), 80, dtype=torch.uint8)
    stripes = flat.clone()
    stripes[:, :, ::2] = 160
    assert metrics.sharpness(flat).item() == 0
    assert metrics.sharpness(stripes).item() == pytest.approx(40)  # 80 across, 0 along
    assert metrics.brightness(flat).item() == pytest.approx(80)
    assert metrics.brightness(stripes).item() == pytest.approx(120)
    assert metrics.entropy(flat).item() == 0
    assert metrics.entropy(stripes).item() == pytest.approx(1)
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert metrics.entropy(ramp).item() == pytest.approx(3, abs=0.01)


def test_moving_and_reference_range():
    frames = noise(2)
    after = frames.clone()
    after[1] = 255 - after[1]
    assert metrics.moving(after, frames).tolist() == [False, True]
    limits = metrics.reference_range(torch.arange(101.0))
    assert limits == pytest.approx((1, 99))
    assert metrics.inside(torch.tensor([0.0, 1.0, 50.0, 100.0]), limits).tolist() == [False, True, True, False]


@pytest.mark.parametrize("shift", [-9, -3, 0, 4, 8])
def test_pan_finds_shifts(shift):
    wide = np.array(texture(64, 96, 1))
    before, after = (torch.from_numpy(wide[:, 16 - s : 80 - s].copy()).unsqueeze(0) for s in (0, shift))
    amounts, clear, _ = turns(before, after, pan())
    assert amounts.item() == shift
    assert clear.item() == (shift != 0)


@pytest.mark.parametrize("degrees", [-6.0, -3.0, 0.0, 4.5])
@pytest.mark.parametrize("forward", [0, 50])
def test_orbit_finds_rotations_while_driving(degrees, forward):
    view = texture(800, 1000, 2)  # what the game draws before it makes a square of it
    turned = view.rotate(-degrees, Image.Resampling.BICUBIC, center=(500, 612), translate=(0, forward))
    amounts, clear, _ = turns(frame(view).unsqueeze(0), frame(turned).unsqueeze(0), orbit())
    assert amounts.item() * 1.5 == pytest.approx(degrees, abs=1.6)  # the upper part moves right when turned clockwise
    assert clear.item() == (degrees != 0)


def test_steer_of_choices_and_wheels():
    choices, keys = spaces.Discrete(4), {"": 0, "left": 1, "right": 2, "right+up": 3}
    flat = torch.from_numpy(ActionCodec(choices).flatten(np.arange(4)))
    steer = steer_of(flat, keys, choices)
    assert steer is not None and steer.tolist() == [0, -1, 1, 1]
    wheel = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
    flat = torch.from_numpy(ActionCodec(wheel).flatten(np.array([[-0.9, 0], [0.1, 1], [0.5, 0]], np.float32)))
    steer = steer_of(flat, {"left": (-0.7, 0), "right": (0.7, 0), "left+up": (-0.7, 1), "right+up": (0.7, 1)}, wheel)
    assert steer is not None and steer.tolist() == [-1, 0, 1]
    assert steer_of(flat, {"up": (0, 1)}, wheel) is None


def test_held():
    steer = torch.tensor([[1, 1, 1, 1, -1, -1, 0, 0, 0.0]])
    assert held(steer).tolist() == [[False, False, True, True, False, False, False, False, False]]


def test_direction_tells_right_from_wrong():
    # A picture that moves left when steering right, and two worlds: one that does so too, one that does the opposite.
    wide = np.array(texture(64, 400, 3))
    steer = torch.cat([torch.ones(1, 12), -torch.ones(1, 12)], dim=1)
    places = 200 + np.concatenate([[0], 5 * steer[0].cumsum(0).numpy()]).astype(int)
    frames = torch.from_numpy(np.stack([wide[:, x : x + 64] for x in places])).unsqueeze(0)
    mirrored = torch.from_numpy(np.stack([wide[:, x : x + 64] for x in 400 - places])).unsqueeze(0)
    before, truth = frames[:, :-1], frames[:, 1:]
    good = direction(steer, before, truth, truth, (steer, truth))
    assert good is not None and good["camera"] == "pan"
    assert good["right"] == good["truth_right"] == good["free_right"] == good["free_turning"] == 1
    opposite = torch.from_numpy(np.stack([wide[:, x : x + 64] for x in places[:-1] - 5 * steer[0].numpy().astype(int)]))
    bad = direction(steer, before, truth, opposite.unsqueeze(0), (steer, mirrored[:, 1:]))
    assert bad is not None and bad["right"] == bad["free_right"] == 0
    still = direction(steer, before, truth, before)
    assert still is not None and still["right"] == 0
    assert direction(steer, before, before, before) is None  # nothing turns: nothing to say


def scene(palette: Palette, lean: int = 0) -> torch.Tensor:
    image = Image.new("RGB", (64, 64), GROUNDS[palette.ground][0])
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 8, 18, 20), GROUNDS[palette.ground][1])
    draw.polygon([(26, 63), (38, 63), (38 + lean, 0), (26 + lean, 0)], ROADS[palette.road])
    draw.rectangle((31, 48, 32, 50), (200, 4, 5))
    draw.rectangle((0, 56, 63, 63), (0, 0, 0))
    return torch.from_numpy(np.array(image))


def test_every_palette_is_told_apart():
    frames = torch.stack([scene(palette) for palette in PALETTES])
    dull = (frames.float() * 0.96 + 3 + 6 * torch.randn(frames.shape)).clamp(0, 255).to(torch.uint8)
    assert best_palettes(frames) == list(PALETTES)
    assert best_palettes(dull) == list(PALETTES)
    seen = look(dull, list(PALETTES))
    assert all(part.all() for part in (seen.road, seen.ground, seen.car, seen.palette))
    named = [*PALETTES[1:], PALETTES[0]]
    assert not look(dull, named).palette.any()
    lost = torch.full_like(frames[:1], 40)
    lost[:] = torch.tensor(GROUNDS["grass"][0], dtype=torch.uint8)
    gone = look(lost, [Palette("grey", "grass")])
    assert gone.ground.item() and not gone.road.item() and not gone.car.item()


def test_road_policy_steers_to_the_road():
    palette = Palette("grey", "grass")
    frames = torch.stack([scene(palette, lean) for lean in (-30, 0, 30)])
    actions, prompts = RoadPolicy([palette] * 3, ["a", "b", "c"])([0, 1, 2], 0, frames)
    assert prompts == ["a", "b", "c"]
    assert actions.shape == (3, 3) and actions[0, 0] < -0.2 and actions[1, 0].abs() < 0.1 and actions[2, 0] > 0.2
