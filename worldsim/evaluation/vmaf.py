"""VMAF of a clip, by the libvmaf of the ffmpeg that comes with imageio-ffmpeg.

VMAF (Netflix, model vmaf_v0.6.1) predicts how viewers rate a compressed video beside the original, 0 to 100. It was
fitted to films at 1080 lines, not to games of 64: it means little as an absolute rating, and more as an order of worlds
of one game. It needs larger pictures than our frames, so both clips are enlarged in the same way first. The score
depends on the enlargement (blur costs more in larger pictures), so figures at another `LEAST` are not comparable.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from worldsim.data.frames import check_frames
from worldsim.errors import FrameError, MissingDependency

MODEL = "vmaf_v0.6.1"
LEAST = 128  # pixels of the shorter side to which smaller frames are enlarged, by a whole factor


def vmaf(clip: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean VMAF, 0..100, of a clip against the truth, both uint8 (T, H, W, 3).

    Equal clips get 95 to 100: the model was fitted that way.

    Raises:
        FrameError: frames of another dtype or shape, or clips of different shapes.
        MissingDependency: imageio-ffmpeg is not installed, or its ffmpeg was built without libvmaf.
    """
    clip, truth = (check_frames(frames, name, dims=4) for frames, name in ((clip, "clip"), (truth, "truth")))
    if clip.shape != truth.shape or not len(clip):
        raise FrameError(
            f"the clip has shape {clip.shape} and the truth {truth.shape}; they must be equal, with frames."
        )
    factor = -(-LEAST // min(clip.shape[1:3]))
    size = f"{clip.shape[2] * factor}x{clip.shape[1] * factor}"
    # Both inputs through files: ffmpeg reads them in turns, and two pipes would need two threads.
    with tempfile.TemporaryDirectory() as folder:
        inputs: list[str] = []
        for name, frames in (("clip", clip), ("truth", truth)):
            (Path(folder) / name).write_bytes(_enlarge(frames, factor).tobytes())
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", name]
        # Full names, so that both are converted in one way; the log is named without a folder, since a filter's option
        # would need its colons and backslashes escaped.
        graph = (
            "[0]format=yuv444p[a];[1]format=yuv444p[b];"
            f"[a][b]libvmaf=model=version={MODEL}:n_threads=1:log_fmt=json:log_path=log.json"
        )
        command = [_ffmpeg(), "-v", "error", "-nostdin", *inputs, "-lavfi", graph, "-f", "null", "-"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if run.returncode and "libvmaf" in run.stderr and "No such filter" in run.stderr:
            raise MissingDependency("libvmaf", "VMAF", "pip install --force-reinstall imageio-ffmpeg")
        if run.returncode:
            raise FrameError(f"ffmpeg could not compare clips of shape {clip.shape}: {run.stderr.strip()}")
        return float(json.loads((Path(folder) / "log.json").read_text())["pooled_metrics"]["vmaf"]["mean"])


def _enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return frames
    size = (frames.shape[2] * factor, frames.shape[1] * factor)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependency("imageio-ffmpeg", "VMAF", "pip install imageio-ffmpeg") from error
    return imageio_ffmpeg.get_ffmpeg_exe()
