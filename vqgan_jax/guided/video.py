"""Frames -> a .gif or an .mp4."""

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
    import imageio_ffmpeg  # late: it looks for its program when it is imported

    height, width = (side + side % 2 for side in shown[0].shape[:2])
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=1)
    writer.send(None)
    try:
        for frame in shown:
            padding = [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)]
            writer.send(np.ascontiguousarray(np.pad(frame, padding, mode="edge")))
    finally:
        writer.close()


def enlarged(frame: np.ndarray) -> np.ndarray:
    """A whole number of times as large, so that people can see it."""
    times = max(1, -(-_SEEN // min(frame.shape[:2])))
    return frame.repeat(times, axis=0).repeat(times, axis=1)
