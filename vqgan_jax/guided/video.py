"""Videos: writing frames to files or folders, and reading them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from train_jax.arguments import check_folder
from train_jax.errors import ConfigError, UserError
from vqgan_jax.guided.starts import load_image

SUFFIXES = (".gif", ".mp4", ".webm")
# Arguments of ffmpeg by suffix: H.264 by its default quality, VP9 by a constant one, since its default is a low rate.
_CODECS = {".mp4": ("-vcodec", "libx264"), ".webm": ("-vcodec", "libvpx-vp9", "-b:v", "0", "-crf", "24")}
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # suffixes of the files of a folder that are frames
FPS = 15  # frames per second
_MIN_SIDE = 128  # pixels of the shorter side; smaller frames are enlarged


def check(path: str | Path, fps: float | int) -> Path:
    """Checks the path and the frame rate of a video. Raises UserError for other suffixes, or rates out of range.

    A path without a suffix is a folder of PNGs, which must be empty, so that old frames are not among new ones.
    """
    path = Path(path)
    if not path.suffix:
        check_folder(path, "--video")
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"--video {path}: the folder is not empty; name another one for the frames")
    elif path.suffix.lower() not in SUFFIXES:
        allowed = f"one of {', '.join(SUFFIXES)}, or none for a folder of PNGs"
        raise UserError(f"--video {path}: the suffix of a video must be {allowed}")
    if path.suffix.lower() in _CODECS:
        _ffmpeg_executable(f"--video {path}", "a .gif needs no ffmpeg")  # fails before painting if ffmpeg is missing
    check_fps(fps)
    return path


def check_fps(fps: float | int, name: str = "--fps") -> None:
    """Raises ConfigError for a frame rate that is not a number in [0.1, 100]."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0.1 <= fps <= 100:
        raise ConfigError(f"{name} {fps}: frames per second must be a number in [0.1, 100]")


def write(path: str | Path, frames: Sequence[np.ndarray], fps: float | int = FPS) -> None:
    """Writes frames, uint8 [F, H, W, 3], to a .gif, .mp4 or .webm file, or to PNGs in a folder.

    In files small frames are enlarged; sides of .mp4 and .webm are padded to even, as their pixel format needs.
    """
    path = check(path, fps)
    if not len(frames):
        raise UserError(f"--video {path}: no frames to write")
    if not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(path / f"{index:05d}.png")
        return
    frames = [enlarge(frame) for frame in frames]
    if path.suffix.lower() == ".gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        return
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    padding = [(0, height - frames[0].shape[0]), (0, width - frames[0].shape[1]), (0, 0)]
    # imageio_ffmpeg's own writer forks the process, which is not safe with JAX's threads.
    command = [_ffmpeg_executable(f"--video {path}", "a .gif needs no ffmpeg"), "-y", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an"]
    command += [*_CODECS[path.suffix.lower()], "-pix_fmt", "yuv420p"]
    pixels = b"".join(np.pad(frame, padding, mode="edge").tobytes() for frame in frames)
    result = subprocess.run([*command, str(path)], input=pixels, capture_output=True, check=False)
    if result.returncode:
        raise UserError(f"--video {path}: ffmpeg failed with {result.stderr.decode(errors='replace').strip()!r}")


def read(path: str | Path, size: tuple[int, int], fps: float | int) -> UInt8[np.ndarray, "f H W 3"]:
    """Reads the frames of a video, or the pictures of a folder in the order of their names.

    Args:
      size: height and width, which frames are resized to cover, and cropped to in the middle.
      fps: frames per second at which a video is sampled.

    Raises UserError for a file that is no video, and for a folder without pictures.
    """
    path, (height, width) = Path(path), size
    if path.is_dir():
        pictures = list_pictures(path)
        return np.stack([np.round(255 * load_image(picture, size, "video_in")).astype(np.uint8) for picture in pictures])
    path.stat()  # raises the error of a missing file
    cover = f"fps={fps:g},scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}"
    command = [_ffmpeg_executable(f"video_in {path}", "a folder of pictures needs no ffmpeg"), "-loglevel", "error"]
    command += ["-i", str(path), "-vf", cover, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode or not result.stdout:
        raise UserError(f"video_in {path}: ffmpeg reads no frames, {result.stderr.decode(errors='replace').strip()!r}")
    return np.frombuffer(result.stdout, np.uint8).reshape(-1, height, width, 3)


def list_pictures(folder: str | Path) -> list[Path]:
    """Lists the pictures of a folder by their names. Raises UserError if there are none."""
    pictures = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in _PICTURES)
    if not pictures:
        raise UserError(f"video_in {folder}: the folder has no pictures ({', '.join(_PICTURES)})")
    return pictures


def _ffmpeg_executable(path: str, remedy: str) -> str:
    """Returns the path of ffmpeg. Raises UserError, which names the option and what to do, if ffmpeg is not installed."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Enlarges a frame by an integer factor so that its shorter side is at least `_MIN_SIDE`."""
    factor = max(1, -(-_MIN_SIDE // min(frame.shape[:2])))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
