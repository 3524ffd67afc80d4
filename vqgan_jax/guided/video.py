"""Frames -> a .gif or an .mp4."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from train_jax.errors import UserError

SUFFIXES = (".gif", ".mp4")
_SEEN = 128  # pixels along the shorter side that people can look at; smaller frames are enlarged


def check(path: str | Path, fps: float | int) -> Path:
    """The path of a video to write. UserError for another suffix, or frames a second that cannot be."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--video {path}: a video is one of {', '.join(SUFFIXES)}; name it so")
    if path.suffix.lower() == ".mp4":
        _program(path)  # now, and not after hours of painting
    if not 0.1 <= fps <= 100:
        raise UserError(f"--fps {fps:g}: frames a second must be in [0.1, 100]")
    return path


def write(path: str | Path, frames: Sequence[np.ndarray], fps: float | int = 15) -> None:
    """Writes uint8 [F, H, W, 3] frames. Small ones are enlarged; of an .mp4, sides become even, which H.264 asks for."""
    path = check(path, fps)
    if not len(frames):
        raise UserError(f"--video {path}: there is no frame to write")
    shown = [enlarged(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in shown]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        return
    height, width = (side + side % 2 for side in shown[0].shape[:2])
    padding = [(0, height - shown[0].shape[0]), (0, width - shown[0].shape[1]), (0, 0)]
    # Not the package's own writer: it forks, which JAX's threads may not survive.
    command = [_program(path), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p"]
    pixels = b"".join(np.pad(frame, padding, mode="edge").tobytes() for frame in shown)
    done = subprocess.run([*command, str(path)], input=pixels, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"--video {path}: ffmpeg ended with {done.stderr.decode(errors='replace').strip()!r}")


def _program(path: Path) -> str:
    """The path of ffmpeg."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"--video {path}: {error}; a .gif needs no ffmpeg") from error


def enlarged(frame: np.ndarray) -> np.ndarray:
    """A whole number of times as large, so that people can see it."""
    times = max(1, -(-_SEEN // min(frame.shape[:2])))
    return frame.repeat(times, axis=0).repeat(times, axis=1)
