"""Frames -> a .gif or an .mp4."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from train_jax.errors import UserError

SUFFIXES = (".gif", ".mp4")
_MIN_SIDE = 128  # pixels of the shorter side; smaller frames are enlarged


def check(path: str | Path, fps: float | int) -> Path:
    """Checks the path of a video to write. UserError for another suffix, or frames per second out of range."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--video {path}: a video is one of {', '.join(SUFFIXES)}; name it so")
    if path.suffix.lower() == ".mp4":
        _ffmpeg_executable(path)  # now, and not after hours of painting
    if not 0.1 <= fps <= 100:
        raise UserError(f"--fps {fps:g}: frames a second must be in [0.1, 100]")
    return path


def write(path: str | Path, frames: Sequence[np.ndarray], fps: float | int = 15) -> None:
    """Writes frames, uint8 [F, H, W, 3]. Small ones are enlarged; sides of an .mp4 become even, as H.264 requires."""
    path = check(path, fps)
    if not len(frames):
        raise UserError(f"--video {path}: there is no frame to write")
    frames = [enlarge(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        return
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    padding = [(0, height - frames[0].shape[0]), (0, width - frames[0].shape[1]), (0, 0)]
    # Not the package's own writer: it forks, which JAX's threads may not survive.
    command = [_ffmpeg_executable(path), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p"]
    pixels = b"".join(np.pad(frame, padding, mode="edge").tobytes() for frame in frames)
    done = subprocess.run([*command, str(path)], input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"--video {path}: ffmpeg ended with {done.stderr.decode(errors='replace').strip()!r}")


def _ffmpeg_executable(path: Path) -> str:
    """The path of ffmpeg. UserError where there is none."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"--video {path}: {error}; a .gif needs no ffmpeg") from error


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Repeats pixels until the shorter side has `_MIN_SIDE` or more."""
    times = max(1, -(-_MIN_SIDE // min(frame.shape[:2])))
    return frame.repeat(times, axis=0).repeat(times, axis=1)
