"""Enlarged paintings: what a drawer makes of the enlarged picture, and steps at the larger size."""

import jax
import numpy as np
import pytest
from PIL import Image

from train_jax.errors import ConfigError
from vqgan_jax import guided
from vqgan_jax.guided import colour, enlargement
from vqgan_jax.guided.options import resolve

PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0, "progress": False}
PIXELS = PLAIN | {"drawer": "pixel", "size": (16, 20), "steps": 2, "cuts": 2}


def twice(images) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(x).resize((40, 32), Image.Resampling.LANCZOS)) for x in images])


def test_steps_at_the_larger_size(clip, tmp_path):
    prompts, file = ["a star", "a ring"], tmp_path / "s.npz"
    plain = guided.paint(None, clip, prompts, **PIXELS)
    same = guided.paint(None, clip, prompts, enlarge=2, enlarge_steps=0, **PIXELS)
    assert np.abs(same.images.astype(int) - twice(plain.images)).max() <= 1, "logits of pixels, no step"
    np.testing.assert_array_equal(same.losses, plain.losses)
    np.testing.assert_array_equal(same.snapshots, plain.snapshots)
    painted = guided.paint(None, clip, prompts, enlarge=2, enlarge_steps=2, state_file=file, **PIXELS)
    assert painted.images.shape == (2, 32, 40, 3) and painted.losses.shape == (2, 4)
    np.testing.assert_array_equal(painted.losses[:, :2], plain.losses)
    assert (painted.images != same.images).any() and (painted.losses[:, 2] != painted.losses[:, 0]).all()
    resumed = guided.paint(None, clip, prompts, enlarge=2, enlarge_steps=2, resume_from=file, **PIXELS)
    np.testing.assert_array_equal(resumed.images, painted.images)


def test_a_vqgan_reconstructs_the_enlarged_picture(vq, clip):
    # The program of one step that other tests of this folder use.
    options = PLAIN | {"steps": 3, "save_every": 1, "cuts": 8}
    larger = guided.paint(vq, clip, "a red star | noise:-0.3", enlarge=2, enlarge_steps=0, **options)
    picture = np.asarray(Image.fromarray(larger.snapshots[0, -1]).resize((32, 32), Image.Resampling.LANCZOS))
    codes = vq.encode(picture[None].astype(np.float32) / 255)
    np.testing.assert_array_equal(larger.codes, codes)


@pytest.mark.parametrize("name", ["strokes", "polygons", "splats", "implicit", "layers"])
def test_shapes_are_the_same_at_the_larger_size(clip, name):
    few = {"of": "implicit"} if name == "layers" else {"width": 8} if name == "implicit" else {"count": 4}
    painted = guided.paint(
        None, clip, "a star", drawer_options=few, enlarge=2, enlarge_steps=0, **PIXELS | {"drawer": name, "steps": 1}
    )
    small, large = (colour.over_white(x)[0].astype(float) for x in (painted.snapshots[:, -1], painted.images))
    halved = large.reshape(16, 2, 20, 2, 3).mean((1, 3))
    assert large.shape == (32, 40, 3) and np.abs(halved - small).mean() < 3, "but for softer edges"
    plain = guided.paint(None, clip, "a star", drawer_options=few, **PIXELS | {"drawer": name, "steps": 1})
    jax.tree.map(np.testing.assert_array_equal, painted.latents, plain.latents)
    with pytest.raises(ConfigError, match=f"enlarge_tiles = True: drawer = '{name}' shows the same at every size"):
        tiles = {"enlarge": 2, "enlarge_steps": 0, "enlarge_tiles": True}
        guided.paint(None, clip, "a star", drawer_options=few, **PIXELS | {"drawer": name} | tiles)


def test_tiles_are_blended_and_then_filtered(vq, clip):
    images = np.random.default_rng(0).random((2, 23, 16, 3)).astype(np.float32)
    shapes = []
    blended = enlargement.reconstruct_in_tiles(images, (10, 16), lambda x: shapes.append(x.shape) or x)
    np.testing.assert_allclose(blended, images, rtol=1e-6)
    assert shapes == [(2, 10, 16, 3)] * 3 and enlargement.tile_starts(23, 10) == [0, 6, 13]
    options = PLAIN | {"steps": 1, "cuts": 2, "enlarge": 2, "enlarge_steps": 0, "enlarge_tiles": True}
    overlay = np.zeros((32, 32, 4), np.uint8)
    overlay[:8, :8] = [0, 255, 0, 255]
    painted = guided.paint(vq, clip, "a star", lookup=("red", "blue"), wallpaper="p2", overlay=overlay, **options)
    corner = painted.images[0, :8, :8]
    assert painted.images.shape == (1, 32, 32, 3) and (corner == [0, 255, 0]).all()
    others = painted.images[0, 20:]
    assert {tuple(c) for c in others.reshape(-1, 3).tolist()} <= {(255, 0, 0), (0, 0, 255)}
    np.testing.assert_array_equal(others[:4], painted.images[0, 8:12, ::-1][::-1])


def test_schedules_stay_at_their_ends():
    schedules = {"steps": 10, "lr_decay": 0.5, "latents": "soft", "temperature": 2.0, "temperature_end": 0.5, "scale": 2.0}
    larger = enlargement.enlarge_options(resolve(schedules | {"enlarge": 2, "enlarge_steps": 5}), (64, 96))
    assert larger == resolve({"steps": 15, "lr": 0.05, "latents": "soft", "temperature": 0.5, "size": (64, 96)})
    assert enlargement.enlarge_options(resolve({"stop_after": 3, "enlarge": 2}), (64, 96)).auto_stop is None


def test_a_stopped_painting_is_enlarged_by_all_steps(clip):
    options = PIXELS | {"steps": 4, "lr": 1e-6}
    painted = guided.paint(None, clip, ["a star", "a ring"], enlarge=2, enlarge_steps=2, stop_after=1, **options)
    assert painted.losses.shape == (2, 6) and painted.steps.tolist() == [4, 4]  # two before they stopped, and two


@pytest.mark.parametrize("tiles", [False, True])
def test_cells_of_a_wallpaper_grow_with_the_picture(clip, tiles):
    # Cells of 7 of 15 pixels would be 6 and 14 pixels if both were rounded.
    options = PIXELS | {"size": (15, 15), "wallpaper": "p1", "wallpaper_cells": 2, "enlarge": 2, "enlarge_steps": 0}
    painted = guided.paint(None, clip, "a star", enlarge_tiles=tiles, **options).images[0]
    np.testing.assert_array_equal(painted[:-12], painted[12:])


def test_a_repeated_overlay_is_not_laid_over_tiles(clip):
    black, options = np.zeros((16, 16, 4), np.uint8) + [0, 0, 0, 255], PIXELS | {"size": (16, 16), "steps": 3}
    options |= {"overlay": black.astype(np.uint8), "overlay_every": 2, "overlay_alpha": 0.1}
    painted = guided.paint(None, clip, "a star", enlarge=2, enlarge_steps=0, enlarge_tiles=True, **options)
    assert painted.images.mean() > 50
    with pytest.raises(ConfigError, match="overlay_every = 3 has no effect: it must be below the 3 steps"):
        guided.paint(None, clip, "a star", **options | {"overlay_every": 3})


def test_what_has_no_larger_size(vq, clip):
    with pytest.raises(ConfigError, match="enlarge = 2 applies to paintings only: set a larger size or scale"):
        guided.animate(vq, clip, "a star", enlarge=2)
