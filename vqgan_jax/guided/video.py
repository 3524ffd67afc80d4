"""Writing frames to .gif and .mp4 files."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from train_jax.errors import UserError

SUFFIXES = (".gif", ".mp4")
_MIN_SIDE = 128  # pixels of the shorter side; smaller frames are enlarged


def check(path: str | Path, fps: float | int) -> Path:
    """Checks the path and the frame rate of a video. Raises UserError for other suffixes, or rates out of range."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--video {path}: the suffix of a video must be one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4":
        _ffmpeg_executable(path)  # fails before painting if ffmpeg is missing
    if not 0.1 <= fps <= 100:
        raise UserError(f"--fps {fps:g}: frames per second must be in [0.1, 100]")
    return path


def write(path: str | Path, frames: Sequence[np.ndarray], fps: float | int = 15) -> None:
    """Writes frames, uint8 [F, H, W, 3]. Small frames are enlarged; sides of an .mp4 are padded to even (H.264)."""
    path = check(path, fps)
    if not len(frames):
        raise UserError(f"--video {path}: no frames to write")
    frames = [enlarge(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        return
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    padding = [(0, height - frames[0].shape[0]), (0, width - frames[0].shape[1]), (0, 0)]
    # imageio_ffmpeg's own writer forks the process, which is not safe with JAX's threads.
    command = [_ffmpeg_executable(path), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an"]
    command += ["-vcodec", "libx264", "-pix_fmt", "yuv420p"]
    pixels = b"".join(np.pad(frame, padding, mode="edge").tobytes() for frame in frames)
    result = subprocess.run([*command, str(path)], input=pixels, capture_output=True, check=False)
    if result.returncode:
        raise UserError(f"--video {path}: ffmpeg failed with {result.stderr.decode(errors='replace').strip()!r}")


def _ffmpeg_executable(path: Path) -> str:
    """Returns the path of ffmpeg. Raises UserError if ffmpeg is not installed."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"--video {path}: {error}; a .gif needs no ffmpeg") from error


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Enlarges a frame by an integer factor so that its shorter side is at least `_MIN_SIDE`."""
    factor = max(1, -(-_MIN_SIDE // min(frame.shape[:2])))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
