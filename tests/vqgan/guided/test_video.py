"""Videos are read back."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from train_jax.errors import UserError
from vqgan_jax.guided import video

FRAMES = [np.full((15, 21, 3), (shade, 255 - shade, 90), np.uint8) for shade in (0, 60, 120, 180, 240)]


def test_gif(tmp_path):
    video.write(tmp_path / "a.gif", FRAMES, 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5 and gif.size == (9 * 21, 9 * 15)
        for index, frame in enumerate(FRAMES):
            gif.seek(index)
            assert gif.info["duration"] == 100
            np.testing.assert_allclose(np.asarray(gif.convert("RGB"))[0, 0], frame[0, 0], atol=4)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_files_of_ffmpeg(tmp_path, name):
    video.write(tmp_path / name, FRAMES, 10)
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-i", str(tmp_path / name), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"10 fps" in done.stderr and b"190x136" in done.stderr  # 9 x 21 and 9 x 15, made even
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 136, 190, 3)
    assert len(frames) == 5
    for frame, expected in zip(frames, FRAMES, strict=True):
        np.testing.assert_allclose(frame[60, 90].astype(int), expected[0, 0].astype(int), atol=12)
    # At half the rate every other frame remains, smaller, and cropped to the middle.
    read = video.read(tmp_path / name, (16, 16), 5)
    assert read.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(read[:, 8, 8].astype(int), [frame[0, 0] for frame in FRAMES[::2]], atol=45)


def test_folders(tmp_path):
    video.write(tmp_path / "frames", FRAMES, 10)
    assert [path.name for path in video.list_pictures(tmp_path / "frames")] == [f"{i:05d}.png" for i in range(5)]
    np.testing.assert_array_equal(video.read(tmp_path / "frames", (15, 21), 10), FRAMES)
    with pytest.raises(UserError, match="the folder is not empty"):
        video.write(tmp_path / "frames", FRAMES, 10)
    (tmp_path / "none").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="the folder has no pictures"):
        video.read(tmp_path / "none", (8, 8), 10)
    with pytest.raises(UserError, match="ffmpeg reads no frames"):
        video.read(tmp_path / "text.mp4", (8, 8), 10)
    with pytest.raises(FileNotFoundError):
        video.read(tmp_path / "nowhere.mp4", (8, 8), 10)


def test_large_frames_keep_their_size():
    assert video.enlarge(np.zeros((128, 200, 3), np.uint8)).shape == (128, 200, 3)


@pytest.mark.parametrize(
    "name, fps, message", [("a.avi", 10, "one of .gif, .mp4, .webm, or none for a folder"), ("a.gif", 0, "--fps 0")]
)
def test_other_formats_and_rates_are_refused(tmp_path, name, fps, message):
    with pytest.raises(UserError, match=message):
        video.write(tmp_path / name, FRAMES, fps)
    with pytest.raises(UserError, match="no frames to write"):
        video.write(tmp_path / "a.gif", [], 10)
