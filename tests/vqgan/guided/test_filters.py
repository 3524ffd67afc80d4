"""Wallpaper groups by rolls, flips and rotations of arrays; other filters by loops; and paintings with all of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

import clip_jax
from train_jax.errors import ConfigError
from vqgan_jax import cli, guided
from vqgan_jax.guided import filters, losses, wallpaper

RNG = np.random.default_rng(0)
N = 8  # side of a cell
# One step at 16 x 16 pixels.
FEW = {"drawer": "pixel", "steps": 1, "cuts": 4, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0}
FEW |= {"noise": 0.0, "flip": 0.0, "progress": False}

CENTRING = lambda a: np.roll(a, (N // 2, N // 2), (0, 1))  # noqa: E731
MIRROR, TURN_2, TURN_4 = (lambda a: a[:, ::-1]), (lambda a: a[::-1, ::-1]), np.rot90
# Generators of the groups whose cells are of whole pixels, in 2 x 2 cells, and orbits of a cell's 64 pixels.
SQUARE = {
    "p1": ([], 64),
    "p2": ([TURN_2], 32),
    "pm": ([MIRROR], 32),
    "pg": ([lambda a: np.roll(a[:, ::-1], N // 2, 0)], 32),
    "cm": ([MIRROR, CENTRING], 16),
    "pmm": ([MIRROR, TURN_2], 16),
    "pmg": ([TURN_2, lambda a: np.roll(a[:, ::-1], N // 2, 1)], 16),
    "pgg": ([TURN_2, lambda a: CENTRING(a[:, ::-1])], 16),
    "cmm": ([MIRROR, TURN_2, CENTRING], 8),
    "p4": ([TURN_4], 16),
    "p4m": ([TURN_4, MIRROR], 10),  # pixels on diagonal mirrors have orbits of 4
    "p4g": ([TURN_4, lambda a: CENTRING(a[:, ::-1])], 10),
}
# Generators beside translations of the other groups: rotation in degrees, and mirrors of x and y.
HEXAGONAL = {
    "p3": (120, []), "p3m1": (120, [(-1, 1)]), "p31m": (120, [(1, -1)]), "p6": (60, []), "p6m": (60, [(-1, 1), (1, -1)]),
}  # fmt: skip


def symmetrise(x, group):
    """Makes a picture symmetric, with two cells along its shorter side."""
    return filters.symmetrise(x, group, wallpaper.cell_side(group, 2, x.shape[:2]))


@pytest.mark.parametrize("group", SQUARE)
def test_pictures_are_invariant_under_the_generators_of_a_group(group):
    generators, orbits = SQUARE[group]
    x = jnp.asarray(RNG.random((16, 16, 3)), jnp.float32)
    picture = np.asarray(symmetrise(x, group))
    for generator in (*generators, lambda a: np.roll(a, N, 0), lambda a: np.roll(a, N, 1)):
        np.testing.assert_array_equal(generator(picture), picture)
    colours = np.unique(picture.reshape(-1, 3), axis=0)
    assert len(colours) == orbits, "no more symmetry than that of the group"
    assert {tuple(c) for c in colours} <= {tuple(c) for c in np.asarray(x).reshape(-1, 3)}
    np.testing.assert_array_equal(symmetrise(jnp.asarray(picture), group), picture)


@pytest.mark.parametrize("group", HEXAGONAL)
def test_hexagonal_groups_are_exact_between_pixels_and_read_bilinearly(group):
    angle, mirrors = HEXAGONAL[group]
    points = RNG.uniform(-100, 100, (2, 500))
    y, x = expected = wallpaper.nearest_points(group, 26, *points)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    turned = [(cos * points[0] + sin * points[1], cos * points[1] - sin * points[0])]
    moved = [(points[0], points[1] + 26), (points[0] + 26 * np.sqrt(3) / 2, points[1] - 13)]
    for image in turned + moved + [(b * points[0], a * points[1]) for a, b in mirrors]:
        np.testing.assert_allclose(wallpaper.nearest_points(group, 26, *image), expected, atol=3e-6)
    # As many operations as the group has up to translations: none but the identity leaves a point where it is.
    assert len(wallpaper.operations(group)) == 360 // angle * (2 if mirrors else 1)
    assert np.hypot(y, x).max() <= 26 / np.sqrt(3) + 1e-6, "the hexagon of the lattice"

    rows, columns = wallpaper.orbit_points(group, wallpaper.cell_side(group, 2, (64, 64)), (64, 64))
    assert min(rows.min(), columns.min()) >= 0 and max(rows.max(), columns.max()) <= 63, "inside the picture"
    wave = lambda rows, columns: np.sin(0.3 * rows + 1) + np.cos(0.2 * columns)  # noqa: E731
    smooth = wave(*np.mgrid[:64, :64]).astype(np.float32)[..., None]
    picture = np.asarray(symmetrise(jnp.asarray(smooth), group))[..., 0]
    read = scipy.ndimage.map_coordinates(smooth[..., 0], [rows, columns], order=1, mode="nearest")
    np.testing.assert_allclose(picture, read, atol=1e-5)
    # The error of reading between pixels: an eighth of the second derivatives, 0.3^2 and 0.2^2.
    assert np.abs(picture - wave(rows, columns)).max() <= (0.3**2 + 0.2**2) / 8 + 1e-5


def test_cells_may_not_divide_the_picture():
    x = jnp.asarray(RNG.random((21, 30, 4)), jnp.float32)  # with alpha
    picture = np.asarray(symmetrise(x, "p4"))  # cells of 10 pixels around row 10 and column 15
    np.testing.assert_array_equal(picture[10:], picture[:-10])
    np.testing.assert_array_equal(picture[:, 10:], picture[:, :-10])
    np.testing.assert_array_equal(np.rot90(picture[5:15, 10:20]), picture[5:15, 10:20])


def test_sharpening_and_vignette():
    x = RNG.random((5, 6, 4)).astype(np.float32)
    blurred = x
    for axis in (0, 1):
        blurred = scipy.ndimage.convolve1d(blurred, [0.25, 0.5, 0.25], axis, mode="nearest")
    sharp = filters.sharpen_edges(jnp.asarray(x), jnp.float32(1.5))
    np.testing.assert_allclose(sharp, x + 1.5 * (x - blurred), atol=1e-6)
    colour, terms = np.float32([0.1, 0.9, 0.4]), []
    for i, j in np.ndindex(5, 6):
        r2 = ((i - 2) / 5) ** 2 + ((j - 2.5) / 6) ** 2
        terms.append((1 - np.exp(-r2 / (2 * 0.3**2))) * np.abs(x[i, j, :3] - colour).mean())
    actual = losses.vignette_loss(jnp.asarray(x[..., :3]), jnp.asarray(colour), jnp.float32(0.3))
    np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-5)


def test_copies_are_what_a_clip_sees(clip):
    x = RNG.integers(1, 255, (16, 16, 3)).astype(np.uint8)
    tiled = guided.paint(None, clip, "a star", init_image=x, tile=(2, 3), size=(16, 16), **FEW)
    copies = guided.paint(None, clip, "a star", init_image=np.tile(x, (2, 3, 1)), size=(32, 48), **FEW)
    np.testing.assert_allclose(tiled.losses, copies.losses, rtol=1e-5)
    assert tiled.images.shape == (1, 16, 16, 3)
    with pytest.raises(ConfigError, match="tile = 2 x 3: a part with a place sees it in one copy only"):
        guided.paint(None, clip, "a star:place=top", tile=(2, 3), size=(16, 16), **FEW)
    with pytest.raises(ConfigError, match="wallpaper_cells = 9: a cell of p6 needs 2 pixels, and .* 16 x 16 has room for 6"):
        guided.paint(None, clip, "a star", wallpaper="p6", wallpaper_cells=9, size=(16, 16), **FEW)


def test_a_painting_with_all_filters(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip_jax, "load", lambda path, dtype: clip)
    monkeypatch.chdir(tmp_path)
    words = ["--drawer", "pixel", "--size", "16x16", "--steps", "1", "--cuts", "2", "--wallpaper", "p4g", "--lookup"]
    words += ["red,white,#102030", "--tile", "2x2", "--sharpen", "0.5", "--vignette", "0.5", "--vignette-colour", "red"]
    arguments = ["paint", "a star", "--clip", "c", *words]
    assert cli.main([*arguments, "--out", "out.png", "--state", "s.npz"]) == 0
    assert cli.main(["paint", "--repeat", "out.png", "--out", "again.png"]) == 0
    assert cli.main([*arguments, "--resume", "s.npz", "--out", "resumed.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes() == Path("resumed.png").read_bytes()
    picture = np.asarray(Image.open("out.png"))
    for generator in SQUARE["p4g"][0]:
        np.testing.assert_array_equal(generator(picture), picture)
    assert {tuple(c) for c in picture.reshape(-1, 3).tolist()} <= {(255, 0, 0), (255, 255, 255), (16, 32, 48)}
    with pytest.raises(SystemExit):
        cli.main(["paint", "a star", "--clip", "c", "--tile", "2", "--out", "out.png"])
    assert "'2': write rows and columns of copies, such as 2x2" in capsys.readouterr().err


def test_the_vignette_sharpening_and_gradients_of_many(clip):
    """Settings of one program: pixels of the border turn to the colour, and only the pixels that are drawn are moved."""
    settings = [{}, {"vignette": 50.0}, {"sharpen": 2.0}]
    x = np.full((16, 16, 3), 128, np.uint8)
    x[6:10, 6:10] = 90
    many = guided.paint_many(
        None, clip, ["a star"], settings=settings, init_image=x, vignette_colour="blue", wallpaper="pm", size=(16, 16),
        wallpaper_cells=1, **FEW | {"steps": 2},
    )  # fmt: skip
    plain, towards, sharp = many.images[0, 0].astype(int)
    assert (towards[0] == [115, 115, 141]).all(), "two steps of 0.1 towards blue from logits near 0"
    assert (plain[0] != towards[0]).any()
    assert np.abs(np.diff(sharp[8, :, 0])).max() > np.abs(np.diff(plain[8, :, 0])).max()
    start = np.asarray(jax.nn.sigmoid(many.latents))[0, 0]
    assert (np.ptp(start[:, 12:, 8:], axis=(1, 2, 3)) < 1e-6).all(), "the copied half has no gradient"
