"""Starts: by seed, in range, of the size asked for."""

import numpy as np
import pytest
from PIL import Image

from train_jax.data.errors import BrokenSample
from vqgan_jax.guided import starts


@pytest.mark.parametrize("kind", ["pixels", "gradient", "fractal"])
def test_noise_is_the_same_for_a_seed_and_in_range(kind):
    x = starts.noise_image(kind, 3, (24, 40))
    assert x.shape == (24, 40, 3) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1
    np.testing.assert_array_equal(x, starts.noise_image(kind, 3, (24, 40)))
    assert (x != starts.noise_image(kind, 4, (24, 40))).any()


def test_paper_is_plain():
    np.testing.assert_array_equal(starts.noise_image("plain", 3, (4, 6)), np.full((4, 6, 3), 200 / 255, np.float32))


def test_a_gradient_runs_between_its_corners():
    x = starts.noise_image("gradient", 0, (9, 5))
    corners = np.random.default_rng(0).random((2, 2, 3), np.float32)
    np.testing.assert_allclose(x[[0, 0, -1, -1], [0, -1, 0, -1]], corners.reshape(4, 3), atol=1e-6)
    np.testing.assert_allclose(x[4, 2], corners.mean((0, 1)), atol=1e-6)


def test_fractal_noise_is_mostly_of_long_waves():
    power = np.abs(np.fft.fft2(starts.noise_image("fractal", 1, (64, 64)).mean(-1) - 0.5)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    assert power[(frequency > 0) & (frequency < 0.1)].mean() > 30 * power[frequency > 0.25].mean()
    white = np.abs(np.fft.fft2(starts.noise_image("pixels", 1, (64, 64)).mean(-1) - 0.5)) ** 2
    assert white[(frequency > 0) & (frequency < 0.1)].mean() < 2 * white[frequency > 0.25].mean()


def test_codes_are_of_the_codebook_and_of_the_seed():
    codes = starts.sample_codes(5, (30, 40), 7)
    assert codes.shape == (30, 40) and set(np.unique(codes)) == set(range(7))
    assert (codes != starts.sample_codes(6, (30, 40), 7)).any()


def test_a_picture_covers_the_size_and_its_middle_is_taken(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = (255, 0, 128)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    for source in (wide, tmp_path / "wide.png", Image.fromarray(wide), wide / np.float32(255)):
        image = starts.load_image(source, (10, 10), "init_image")
        np.testing.assert_allclose(image, np.broadcast_to([1, 0, 128 / 255], (10, 10, 3)), atol=1e-6)
    assert starts.load_image(wide, (20, 80), "init_image").shape == (20, 80, 3)


def test_overlays_have_transparency(tmp_path):
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:4] = (255, 0, 0, 255)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    for source in (layer, tmp_path / "layer.png"):
        np.testing.assert_allclose(starts.load_overlay(source, (8, 8)), layer / 255, atol=1e-6)
    with pytest.raises(ValueError, match="no transparency"):
        starts.load_overlay(Image.new("RGB", (4, 4)), (8, 8))


def test_bad_pictures_are_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(BrokenSample, match="init_image .*bad.png"):
        starts.load_image(tmp_path / "bad.png", (8, 8), "init_image")
    with pytest.raises(BrokenSample, match="overlay .*bad.png"):
        starts.load_overlay(tmp_path / "bad.png", (8, 8))
    with pytest.raises(ValueError, match=r"init_image must be \[H, W, 3\].*not uint8 \[8, 8\]"):
        starts.load_image(np.zeros((8, 8), np.uint8), (8, 8), "init_image")
    with pytest.raises(ValueError, match="must lie in"):
        starts.load_image(np.full((8, 8, 3), 2.0), (8, 8), "init_image")
