"""Drawers against closed forms and twins in NumPy; and paintings by each of them, with a CLIP alone."""

import dataclasses
import functools
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.errors import ConfigError, LoadError
from train_jax.options import option
from vqgan_jax import guided
from vqgan_jax.guided import colour, drawers, options
from vqgan_jax.guided.drawers import grid, rasterise, wavelet
from vqgan_jax.guided.drawers.drawer import Context, Drawer, normal

SIZE = (16, 24)
SMALL = {
    "pixel": {},
    "grid": {"cells": 5, "shape": "hex"},
    "fourier": {},
    "wavelet": {"levels": 2},
    "strokes": {"count": 4, "width": 0.1},
    "polygons": {"count": 4, "corners": 4, "radius": 0.25},
    "splats": {"count": 4, "radius": 0.2},
    "implicit": {"width": 32, "depth": 2},
    "layers": {"of": "pixel"},
}
EXACT = ("pixel", "fourier", "wavelet", "layers")  # those that show a start picture exactly
# Whole pictures, unchanged, so that losses of steps can be compared.
PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0, "cut_min": 1.0}
FEW = PLAIN | {"size": (16, 16), "steps": 6, "save_every": 3, "cuts": 2, "progress": False}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def render(drawer, z, size=SIZE) -> np.ndarray:
    """The first of several pictures."""
    return np.asarray(jax.jit(lambda z: drawer.render(z, Context(size)))(jax.tree.map(lambda x: x[0], z)))


def is_same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(a)) == len(np.unique(b))


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


@pytest.fixture
def drawer(name):
    return options.make_drawer(name, SMALL[name])


def test_every_drawer_is_tested():
    assert {"vqgan", "unclip", *SMALL} == drawers.TABLE.keys()  # tests/dalle/unclip/test_drawer.py


def test_the_example_of_the_docs_is_a_drawer():
    text = (Path(__file__).parents[3] / "docs" / "design.md").read_text()
    lines = text.partition("A drawer is a file, and a line of `TABLE`:\n\n")[2].partition("\n\nA drawer that")[0]
    names = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "np": np}
    names |= {"Drawer": Drawer, "option": option, "normal": normal}
    exec(textwrap.dedent(lines), names)
    stripes = names["Stripes"](count=3)
    shown = render(stripes, stripes.init(SIZE, [0]))
    assert shown.shape == (*SIZE, 3) and len(np.unique(shown[0], axis=0)) == 3 and (shown == shown[:1]).all()


def test_gradients_reach_every_parameter(drawer):
    z = drawer.init(SIZE, [3])
    assert all(leaf.dtype == np.float32 and len(leaf) == 1 for leaf in jax.tree.leaves(z))
    other = drawer.init(SIZE, [4])
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(z), jax.tree.leaves(other), strict=True)), "the seed decides"

    @jax.jit
    @jax.grad
    def gradient(z):
        x = drawer.render(z, Context(SIZE))
        assert x.shape in ((*SIZE, 3), (*SIZE, 4))
        return jnp.sum(x * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32))

    for leaf in jax.tree.leaves(gradient(jax.tree.map(lambda x: x[0], z))):
        assert np.isfinite(leaf).all() and (np.asarray(leaf) != 0).all()


def test_paintings_improve_and_resume_bit_for_bit(name, clip, tmp_path):
    paint = functools.partial(
        guided.paint, None, clip, "a red star", seed=1, drawer=name, drawer_options=SMALL[name], average=0.5, **FEW
    )
    painting = paint()
    assert painting.codes is None and painting.losses[0, -1] < painting.losses[0, 0]
    assert painting.images.shape == (1, 16, 16, 4 if name == "layers" else 3)
    state = tmp_path / "state.npz"
    paint(state_file=state, steps=3)
    resumed = paint(resume_from=state)
    jax.tree.map(np.testing.assert_array_equal, resumed.latents, painting.latents)
    np.testing.assert_array_equal(resumed.images, painting.images)


def test_start_pictures(name, drawer):
    y, x = np.meshgrid(np.linspace(0, 1, 16), np.linspace(0, 1, 24), indexing="ij")
    image = np.stack([x, y, 0.5 + 0.5 * np.sin(5 * x)], axis=-1).astype(np.float32)
    z = drawer.init(SIZE, [0])
    start = drawer.encode(SIZE, image[None], z)
    shown, before = (colour.flatten(render(drawer, z), 0.5) for z in (start, z))
    if name in EXACT:
        np.testing.assert_allclose(shown, image, atol=1 / 256)
    elif name == "grid":
        cells = grid.cell_map("hex", 5, SIZE)
        np.testing.assert_allclose(shown[8, 8], image[cells == cells[8, 8]].mean(0), atol=1e-5)
    else:
        assert np.mean((shown - image) ** 2) < 0.4 * np.mean((before - image) ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def positions(cells: int):
    return np.meshgrid(*((np.arange(side) + 0.5) * cells / min(SIZE) for side in SIZE), indexing="ij")


def test_hexagons_are_the_pixels_nearest_to_their_centres():
    y, x = positions(5)
    height = np.sqrt(3) / 2
    centres = np.array([(height * r, c + 0.5 * (r % 2)) for r in range(-2, 12) for c in range(-2, 12)])
    squares = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    assert is_same_partition(grid.cell_map("hex", 5, SIZE), np.argmin(squares, axis=-1))


def test_triangles_lie_between_three_families_of_lines():
    y, x = positions(5)
    height = np.sqrt(3) / 2
    lines = [np.floor(t).astype(int) + 50 for t in (y / height, x - y / (2 * height), x + y / (2 * height))]
    assert is_same_partition(grid.cell_map("triangle", 5, SIZE), lines[0] * 10**4 + lines[1] * 100 + lines[2])


def test_diamonds_are_the_pixels_nearest_by_steps_along_the_axes():
    y, x = positions(3)
    centres = np.array([((i - j) / 2, (i + j + 1) / 2) for i in range(-9, 12) for j in range(-9, 12)])
    distances = np.abs(y[..., None] - centres[:, 0]) + np.abs(x[..., None] - centres[:, 1])
    nearest, second = np.moveaxis(np.sort(distances, axis=-1)[..., :2], -1, 0)
    is_clear = second - nearest > 1e-9  # not on an edge
    assert is_clear.mean() > 0.8
    assert is_same_partition(grid.cell_map("diamond", 3, SIZE)[is_clear], np.argmin(distances, axis=-1)[is_clear])


def test_stitches_are_symmetric_and_of_one_size():
    cells = grid.cell_map("knit", 4, (64, 64))
    np.testing.assert_array_equal(cells[:, :16], cells[:, 15::-1])
    inner = np.setdiff1d(cells, np.concatenate([cells[0], cells[-1]]))
    assert {np.sum(cells == i) for i in inner} == {256}
    columns = np.argmax(cells[:, :16] == cells[32, 8], axis=0)  # the upper edge of a stitch
    assert columns[8] - columns[0] == pytest.approx(8, abs=1), "half of its width lower in the middle"


def test_rectangles_and_palettes():
    np.testing.assert_array_equal(grid.cell_map("rect", 2, (4, 8)), np.arange(8).reshape(2, 4).repeat(2, 0).repeat(2, 1))
    names, cells = ("red", "#00ff80", "black"), np.random.default_rng(0).random((50, 3)).astype(np.float32)
    palette = np.array([[1, 0, 0], [0, 1, 128 / 255], [0, 0, 0]], np.float32)
    expected = [min(palette, key=lambda colour: np.sum((cell - colour) ** 2)) for cell in cells]
    np.testing.assert_allclose(grid.nearest_colours(jnp.asarray(cells), palette), expected, atol=1e-6)
    drawer = grid.Grid(cells=4, colours=names)
    shown = render(drawer, drawer.init(SIZE, [0]))
    assert set(map(tuple, np.round(255 * shown).reshape(-1, 3))) <= {(255, 0, 0), (0, 255, 128), (0, 0, 0)}


# ---------------------------------------------------------------------------------------------------------------------
# Coefficients


def rgb(channels):
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])
    return sigmoid(channels @ (root / np.sqrt((root**2).sum(0)).max()).T)


def test_fourier_is_irfft2_of_numpy():
    drawer = options.make_drawer("fourier", {"decay": 1.5})
    z = np.random.default_rng(0).standard_normal((*SIZE, 3))
    mirrored = np.roll(z[::-1, ::-1], (1, 1), axis=(0, 1))  # of the opposite frequency
    spectrum = (z + mirrored) / 2 - 1j * (z - mirrored) / 2
    rows, columns = np.fft.fftfreq(16)[:, None], np.fft.rfftfreq(24)[None]
    spectrum = spectrum[:, :13] * 0.25 / np.maximum(np.sqrt(rows**2 + columns**2), 1 / 24)[..., None] ** 1.5
    expected = rgb(np.fft.irfft2(spectrum, SIZE, axes=(0, 1), norm="ortho"))
    np.testing.assert_allclose(render(drawer, z[None].astype(np.float32)), expected, atol=2e-5)


def move(name: str, z: dict, down: int, right: int) -> dict:
    """The parameters of the picture that is rolled, by the theorems of shifts."""
    if name == "wavelet":  # whole coefficients
        levels = {key: 2 ** (int(key[-1]) + 1 if key != "coarse" else 2) for key in z}
        return {key: np.roll(x, (down // levels[key], right // levels[key]), (1, 2)) for key, x in z.items()}
    if name == "fourier":  # of the Hartley transform
        angles = 2 * np.pi * (down * np.fft.fftfreq(16)[:, None] + right * np.fft.fftfreq(24)[None])[..., None]
        return np.cos(angles) * z + np.sin(angles) * np.roll(z[:, ::-1, ::-1], (1, 1), (1, 2))
    cos, sin = (np.array([f(2 * np.pi * right / 24), f(2 * np.pi * down / 16)])[:, None] for f in (np.cos, np.sin))
    a, b = z["kernel0"][:, :2], z["kernel0"][:, 2:]  # weights of cosines and sines of x and y
    return z | {"kernel0": np.concatenate([cos * a - sin * b, sin * a + cos * b], axis=1)}


@pytest.mark.parametrize("name, values", [("fourier", {}), ("wavelet", {"levels": 2}), ("implicit", {"seamless": True})])
def test_pictures_without_a_seam(name, values):
    """A rolled picture is one of moved parameters, so that its borders are as any other place."""
    drawer = options.make_drawer(name, values)
    z = drawer.init(SIZE, [0])
    if name != "implicit":
        z = jax.tree.map(lambda x: 100 * x, z)
    picture, down, right = render(drawer, z), *((4, 12) if name == "wavelet" else (5, 11))
    moved = jax.tree.map(np.float32, move(name, z, down, right))
    np.testing.assert_allclose(render(drawer, moved), np.roll(picture, (down, right), (0, 1)), atol=2e-5)
    assert picture.std() > 0.05


def test_wavelets_are_orthonormal():
    # The matrix of a level: each row holds the four taps, shifted by two, and around the border.
    taps = np.array([1 + np.sqrt(3), 3 + np.sqrt(3), 3 - np.sqrt(3), 1 - np.sqrt(3)]) / np.sqrt(32)
    high = taps[::-1] * [1, -1, 1, -1]
    matrix = np.zeros((8, 8))
    for row in range(4):
        for i in range(4):
            matrix[row, (2 * row + i) % 8], matrix[4 + row, (2 * row + i) % 8] = taps[i], high[i]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(matrix[4:7] @ np.arange(8), 0, atol=1e-12)  # linear ramps have no details
    x = np.random.default_rng(0).standard_normal((8, 3))
    low, details = wavelet.analyse(x, 0)
    np.testing.assert_allclose(np.concatenate([low, details]), matrix @ x, atol=1e-12)
    np.testing.assert_allclose(wavelet.synthesise(jnp.asarray(low), jnp.asarray(details), 0), x, atol=1e-5)
    drawer = options.make_drawer("wavelet", {"levels": 1, "decay": 0})
    z = {"details0": np.random.default_rng(1).standard_normal((4, 4, 3, 3)), "coarse": np.ones((4, 4, 3))}
    coarse, across, down, both = (x.transpose(2, 0, 1) for x in (z["coarse"], *np.moveaxis(z["details0"], 2, 0)))
    blocks = np.block([[coarse, across], [down, both]])
    shown = render(drawer, jax.tree.map(lambda x: x[None].astype(np.float32), z), (8, 8))
    np.testing.assert_allclose(shown, rgb((matrix.T @ blocks @ matrix).transpose(1, 2, 0)), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def test_coverage_of_a_circle_is_its_area():
    size, radius = (96, 128), 30.0
    angles = 2 * np.pi * np.arange(64) / 64
    corners = radius / 96 * np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    depth = rasterise.depth_in_polygon(rasterise.pixel_positions(size), corners)
    area = 64 / 2 * radius**2 * np.sin(2 * np.pi / 64)  # of the polygon
    softened = np.pi**3 / 3 * 0.5**2  # a circle whose edge is a sigmoid of width s has pi^3 s^2 / 3 more
    assert float(jnp.sum(rasterise.soften(depth, size))) == pytest.approx(area + softened, rel=2e-4)


def test_coverage_of_a_stroke_is_that_of_a_capsule():
    size, radius, length = (96, 128), 8.0, 60.0
    a, b = (np.array([[sign * length / 2 / 96, 0.01]], np.float32) for sign in (-1, 1))
    depth = radius / 96 - rasterise.distance_to_segments(rasterise.pixel_positions(size), a, b)
    area = 2 * radius * length + np.pi * radius**2 + np.pi**3 / 3 * 0.5**2
    assert float(jnp.sum(rasterise.soften(depth, size))) == pytest.approx(area, rel=1e-3)


def test_a_polygon_that_crosses_itself_has_holes():
    star = np.array([[np.sin(i * 4 * np.pi / 5), -np.cos(i * 4 * np.pi / 5)] for i in range(5)], np.float32) * 0.45
    depth = np.asarray(rasterise.depth_in_polygon(rasterise.pixel_positions((64, 64)), star))
    assert depth[32, 32] < 0 < depth[10, 32], "the pentagon in the middle, and the upper point"


@pytest.mark.parametrize("ground", ["#ff8000", "transparent"])
def test_splats_are_painted_one_over_the_other(ground):
    drawer = options.make_drawer("splats", {"count": 6, "radius": 0.2, "ground": ground})
    z = jax.tree.map(lambda x: x.astype(np.float64), drawer.init(SIZE, [2]))
    y, x = np.meshgrid((np.arange(16) + 0.5 - 8) / 16, (np.arange(24) + 0.5 - 12) / 16, indexing="ij")
    pixels, alpha = np.zeros((*SIZE, 3)) + [1, 128 / 255, 0], np.zeros((*SIZE, 1))
    if ground == "transparent":
        pixels[:] = 0
    for i in reversed(range(6)):  # from the last, behind, to the first
        c, s = np.cos(z["angle"][0, i]), np.sin(z["angle"][0, i])
        turned = np.array([[c, -s], [s, c]])
        covariance = turned @ np.diag((0.2 * np.exp(z["scale"][0, i])) ** 2 + (0.3 / 16) ** 2) @ turned.T
        offset = np.stack([x - 0.1 * z["centre"][0, i, 0], y - 0.1 * z["centre"][0, i, 1]], axis=-1)
        squares = np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(covariance), offset)
        opacity = (sigmoid(z["opacity"][0, i]) * np.exp(-squares / 2))[..., None]
        pixels = (1 - opacity) * pixels + opacity * sigmoid(z["colour"][0, i])
        alpha = 1 - (1 - opacity) * (1 - alpha)
    shown = render(drawer, drawer.init(SIZE, [2]))
    if ground == "transparent":
        np.testing.assert_allclose(shown[..., 3:], alpha, atol=1e-5)
        np.testing.assert_allclose(shown[..., :3] * shown[..., 3:], pixels, atol=1e-5)
    else:
        np.testing.assert_allclose(shown, pixels, atol=1e-5)


def test_strokes_of_one_ink():
    drawer = options.make_drawer("strokes", {"count": "3", "ink": "navy", "width": 0.4})
    z = drawer.init(SIZE, [0])
    assert "colour" not in z
    shown = render(drawer, z | {"opacity": np.full((1, 3), 20, np.float32)})
    np.testing.assert_allclose(shown.reshape(-1, 3).min(0), [0, 0, 128 / 255], atol=2e-2)


def test_an_implicit_picture_is_a_network_of_any_size():
    drawer = options.make_drawer("implicit", {"width": 8, "depth": 2})
    z = drawer.init(SIZE, [1])
    y, x = np.meshgrid((np.arange(16) + 0.5 - 8) / 8, (np.arange(24) + 0.5 - 12) / 8, indexing="ij")
    h = 12 * np.stack([x, y], axis=-1)
    for i in range(3):
        h = h @ (0.01 * z[f"kernel{i}"][0]) + 0.01 * z[f"bias{i}"][0]
        h = np.sin(h) if i < 2 else h
    small = render(drawer, z)
    np.testing.assert_allclose(small, rgb(h), atol=1e-4)
    np.testing.assert_allclose(render(drawer, z, (48, 72))[1::3, 1::3], small, atol=1e-4)  # each third centre is the same


def test_layers_are_composited_and_transparent():
    drawer = options.make_drawer("layers", {"of": "pixel", "count": 3})
    z = drawer.init(SIZE, [0])
    assert z["colour"].shape == z["opacity"].shape == (1, 3, *SIZE, 3) and (z["colour"] != z["opacity"]).any()
    pixels, light = np.zeros((*SIZE, 3)), np.ones((*SIZE, 1))
    for colours, opacity in zip(sigmoid(z["colour"][0]), sigmoid(z["opacity"][0]).mean(-1, keepdims=True), strict=True):
        pixels, light = pixels + light * opacity * colours, light * (1 - opacity)
    shown = render(drawer, z)
    np.testing.assert_allclose(shown[..., 3:], 1 - light, atol=1e-6)
    np.testing.assert_allclose(shown[..., :3] * shown[..., 3:], pixels, atol=1e-6)


def test_overlays_of_pictures_with_alpha():
    """Porter and Duff's "over": composited over any colour, it is the one over the other over that colour."""
    rng = np.random.default_rng(0)
    x, overlay = rng.random((2, 4, 5, 4)).astype(np.float32)
    for grey in (0.0, 0.3, 1.0):
        expected = overlay[..., 3:] * overlay[..., :3] + (1 - overlay[..., 3:]) * colour.flatten(x, grey)
        np.testing.assert_allclose(colour.flatten(colour.cover(x, overlay), grey), expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Paintings


def test_paintings_of_a_batch_are_those_alone(clip):
    few = FEW | {"drawer": "wavelet", "drawer_options": {"levels": 2}, "steps": 3}
    many = guided.paint_many(None, clip, ["a red star"], seeds=(0, 1), settings=[{}, {"sparsity": 0.5}], at_once=2, **few)
    assert many.latents["coarse"].shape == (1, 2, 2, 4, 4, 3) and many.codes is None
    penalty = sum(np.abs(z).mean() for name, z in make_start("wavelet", {"levels": 2}).items() if name != "coarse") / 2
    np.testing.assert_allclose(many.losses[0, 0, 1, 0] - many.losses[0, 0, 0, 0], 0.5 * penalty, atol=1e-6)
    one = guided.paint(None, clip, "a red star", seed=1, **few)
    np.testing.assert_allclose(many.losses[0, 1, 0], one.losses[0], atol=1e-5)


def make_start(name: str, values: dict):
    return options.make_drawer(name, values).init((16, 16), [0])


def test_frames_of_an_animation_start_from_the_moved_picture(clip):
    few = {name: value for name, value in FEW.items() if name != "save_every"}
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    animation = guided.animate(
        None, clip, "a red star", motion=guided.Motion(frames=2, frame_steps=1, right=0.25), drawer="pixel",
        init_image=image, **few | {"lr": 1e-6, "steps": 1},
    )  # fmt: skip
    np.testing.assert_allclose(animation.frames[0].astype(int), image, atol=1)
    np.testing.assert_allclose(animation.frames[1][:, 4:].astype(int), image[:, :-4], atol=1)


def test_the_default_size_is_twice_that_of_clip(clip):
    painting = guided.paint(None, clip, "a red star", drawer="pixel", **FEW | {"size": None, "steps": 3, "scale": 1.5})
    assert painting.images.shape == (1, 24, 24, 3)


def test_models_and_drawers_must_agree(vq, clip, tmp_path):
    with pytest.raises(ConfigError, match="drawer = 'vqgan' needs a VQGAN"):
        guided.paint(None, clip, "a")
    with pytest.raises(ConfigError, match="drawer = 'pixel' uses no VQGAN"):
        guided.paint(vq, clip, "a", drawer="pixel")
    with pytest.raises(ConfigError, match="16 x 18: both sides must be divisible by 16, .* or drawer"):
        guided.paint(None, clip, "a", drawer="wavelet", size=(16, 18))
    with pytest.raises(ConfigError, match="cells = 32: the shorter side has 16 pixels"):
        guided.paint(None, clip, "a", drawer="grid", size=(16, 18))
    few = FEW | {"steps": 3, "average": 0.5}
    guided.paint(None, clip, "a red star", drawer="pixel", state_file=tmp_path / "s.npz", **few)
    with pytest.raises(LoadError, match="options drawer is pixel in the file and fourier in this painting"):
        guided.paint(None, clip, "a red star", drawer="fourier", resume_from=tmp_path / "s.npz", **few)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"drawer": "oil"}, "drawer = 'oil'; it must be one of vqgan, pixel, grid"),
        ({"drawer_options": {"cells": 3}}, "drawer_options = {'cells': 3} has no effect: give drawer"),
        ({"drawer": "grid", "drawer_options": {"cell": 3}}, "cell is not an option of the drawer grid: did you mean cells?"),
        ({"drawer": "grid", "drawer_options": {"cells": 0}}, "cells = 0; it must be at least 1"),
        ({"drawer": "grid", "drawer_options": {"cells": "few"}}, "cells = 'few' is of type str; it must be of type int"),
        ({"drawer": "grid", "drawer_options": {"shape": "star"}}, "shape = 'star'; it must be one of rect, hex"),
        ({"drawer": "grid", "drawer_options": {"colours": "red,rouge"}}, "'rouge' is not a colour"),
        ({"drawer": "strokes", "drawer_options": {"ground": "paper"}}, "'paper' is not a colour"),
        ({"drawer": "implicit", "drawer_options": "seamless=yes"}, "seamless = 'yes' is of type str; it must be of type b"),
        ({"drawer": "grid", "drawer_options": "hex"}, "drawer_options = 'hex'; it must be NAME=VALUE"),
        ({"drawer": "grid", "drawer_options": 3}, "drawer_options = 3 is of type int"),
        ({"drawer": "pixel", "sparsity": 1.0}, "sparsity = 1: drawer = pixel has no penalty of detail"),
        ({"drawer": "pixel", "latents": "soft"}, "latents = 'soft' has no effect: give drawer = vqgan"),
        ({"drawer": "pixel", "prior": "runs/prior"}, "prior = runs/prior: it models the codes of a VQGAN"),
    ],
)
def test_invalid_options_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        options.resolve(values)
    assert message in str(error.value)


def test_all_options_of_a_drawer_are_stored():
    resolved = options.resolve({"drawer": "grid", "drawer_options": "colours=red, blue,cells=8"})
    stored = resolved.to_json()
    assert stored["drawer_options"] == {"cells": 8, "shape": "rect", "colours": ["red", "blue"]}
    assert options.resolve(stored) == resolved
