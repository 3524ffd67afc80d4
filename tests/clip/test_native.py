"""Images of native aspect ratio: sizes, packing, positions, padding, and training on them. Parity: `test_pretrained.py`."""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import LoadError
from clip_jax import task as clip_task
from clip_jax.vision import position_weights
from nn_jax.patches import Patches
from train_jax.data.images import Preprocess, fit_patches
from train_jax.errors import ConfigError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip" / "hf-naflex"
NATIVE = {"model__image__native": True, "model__image__pool": "map", "preprocess__mode": "native"}
PREPROCESS = Preprocess(16, "native", "bilinear", patch=4, max_patches=10)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_has_as_many_patches_as_the_budget_allows():
    """Against the largest of all factors at which a side reaches a multiple of the patch."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height, budget = (int(x) for x in rng.integers((8, 8, 1), (900, 900, 300)))
        sides = (width, height)
        factors = [count * 16 / side for side in sides for count in range(1, budget + 1)]
        counts = [[math.ceil(round(side * factor / 16, 9)) for side in sides] for factor in factors]
        best = max((factor, pair) for factor, pair in zip(factors, counts, strict=True) if math.prod(pair) <= budget)
        size = fit_patches(width, height, 16, budget)
        assert size == tuple(16 * count for count in best[1]), (width, height, budget)
        assert fit_patches(*size, 16, budget) == size, "a preprocessed image stays as it is"


def test_a_packed_image_is_unpacked_in_row_major_order():
    pixels = PREPROCESS(noise(30, 13))
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    assert rows * columns <= 10 and columns > rows
    batch = PREPROCESS.batch([noise(30, 13), noise(9, 40)])
    assert batch.shape == (2, *PREPROCESS.shape) and batch.dtype == np.uint8
    patches = PREPROCESS.normalize(batch)
    assert patches.grid[0].tolist() == [rows, columns] and patches.grid[1, 0] > patches.grid[1, 1]
    expected = (pixels / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    for index, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        patch = expected[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(patches.pixels[0, index], patch.reshape(-1), atol=1e-5)
    assert Preprocess.from_json(PREPROCESS.to_json()) == PREPROCESS and "patch" not in Preprocess(16).to_json()
    many = dataclasses.replace(PREPROCESS, max_patches=700)
    assert many.normalize(many.batch([np.zeros((4, 2800, 3), np.uint8)])).grid.tolist() == [[1, 700]]


@pytest.mark.parametrize("grid", [(3, 3), (1, 7), (5, 2), (8, 1), (2, 4)])
def test_positions_are_resized_with_antialiasing(grid):
    table = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    weights = position_weights(jnp.arange(12), jnp.array([grid]), 3)[0]
    expected = jax.image.resize(table.reshape(3, 3, 5), (*grid, 5), "linear", antialias=True).reshape(-1, 5)
    np.testing.assert_allclose((weights @ table)[: math.prod(grid)], expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["map", "mean"])
def test_padding_changes_nothing(pool, new_clip):
    tower = {"size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2, "native": True, "pool": pool}
    clip, rng = new_clip(image=tower), np.random.default_rng(0)
    short, padding = rng.standard_normal((2, 3, 192)), rng.standard_normal((2, 4, 192))
    grid = np.array([[1, 3], [3, 1]])

    def encode(pixels, grid):
        return clip.module.apply(clip.variables, Patches(pixels, grid), method="encode_image")

    long = np.concatenate([short, padding], axis=1)
    outputs = [encode(*(jnp.asarray(x) for x in inputs)) for inputs in ((short, grid), (long, grid), (short, grid[::-1]))]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3, "the grid counts"
    assert np.isfinite(encode(jnp.asarray(short), jnp.zeros((2, 2), jnp.int32))).all(), "rows that fill a batch"
    square = jnp.asarray(rng.standard_normal((1, 16, 16, 3)), jnp.float32)
    cut = square.reshape(1, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, 4, 192)
    encoded = clip.module.apply(clip.variables, square, method="encode_image")
    np.testing.assert_allclose(encode(cut, np.array([[2, 2]])), encoded, atol=1e-6)


def test_a_model_is_loaded_with_another_budget():
    pictures = sorted((GOLDEN / "pictures").iterdir())
    clip, larger = clip_jax.load(GOLDEN), clip_jax.load(GOLDEN, max_patches=30)
    assert (clip.preprocess.max_patches, larger.preprocess.max_patches) == (13, 30)
    assert 20 < larger.preprocess.normalize(larger.preprocess.batch(pictures)).grid.prod(axis=1).min() <= 30
    assert clip.fingerprint != larger.fingerprint
    arrays = [larger.preprocess(picture) for picture in pictures]
    np.testing.assert_array_equal(larger.encode_image(arrays), larger.encode_image(pictures))
    assert clip.heat_map(pictures, ["a cat"]).shape == (3, 1, 4, 4)
    with pytest.raises(LoadError, match="image_size has no meaning .* set max_patches"):
        clip_jax.load(GOLDEN, image_size=64)
    with pytest.raises(LoadError, match="max_patches has no meaning .* set image_size"):
        clip_jax.load(GOLDEN.parent / "hf-siglip", max_patches=64)


def test_a_task_trains_on_native_images(resolve, record, batch, random_variables):
    config = resolve(**NATIVE, preprocess__max_patches=6, augment__scale=(0.3, 1.0), augment__flip=True)
    task = clip_task.make(config, None)
    data = batch(task)
    preprocess = Preprocess.from_json(task.artifacts["preprocess.json"])
    assert data["image"].shape == (8, 7, 8, 8, 3) == (8, *preprocess.shape)
    assert len({tuple(grid) for grid in preprocess.normalize(np.asarray(data["image"])).grid.tolist()}) > 1
    params, _ = random_variables(task.init, jax.random.key(0), data)
    gradient = jax.jit(jax.grad(lambda params: task.loss(params, {}, data, jax.random.key(1), 0)[0]))(params)
    for path, x in jax.tree_util.tree_leaves_with_path(gradient["clip"]["vision"]):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(x).all() and (x != 0).any() or "'k'" in name, name


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__image__native": False}, "model.image.native = False; it must be True with preprocess.mode"),
        ({"model__image__pool": "cls"}, "pool = 'cls' must be 'map' with native"),
        ({"model__image__stem": "conv", "model__image__width": 32}, "stem = 'conv' must be 'patch' with native"),
        ({"patch_dropout": 0.5}, "patch_dropout = 0.5; it must be 0 with preprocess.mode"),
        ({"preprocess__mode": "squash", "preprocess__max_patches": 9}, "max_patches = 9; it must be 0 without mode"),
    ],
)
def test_what_native_images_do_not_go_with_is_named(make_task, changes, words):
    with pytest.raises(ConfigError, match=words):
        make_task(**NATIVE | changes)
    for options in ({"mode": "native"}, {"patch": 4, "max_patches": 9}):
        with pytest.raises(ConfigError, match="patch and max_patches"):
            Preprocess(16, **options)
