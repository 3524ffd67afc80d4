"""Pictures with transparency on random papers: sizes and places by hand, and nothing changes without these options."""

import io

import numpy as np
import pytest
from PIL import Image

from train_jax.data import images
from train_jax.data.images import Augment, Preprocess
from train_jax.data.options import AugmentOptions
from train_jax.data.papers import KINDS, Papers
from train_jax.errors import ConfigError

RED = (200, 20, 30)


def square(side: int = 32, length: int = 16) -> Image.Image:
    """A red square in the middle of a transparent picture; transparent pixels are black."""
    image = Image.new("RGBA", (side, side))
    start = (side - length) // 2
    image.paste((*RED, 255), (start, start, start + length, start + length))
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def place(papers: Papers, seed: int = 0, image: Image.Image | None = None) -> np.ndarray:
    return np.asarray(papers.place(image or square(), np.random.default_rng(seed))).astype(int)


def red_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is nearly red."""
    rows, columns = (np.flatnonzero((abs(pixels - RED).sum(axis=-1) < 60).any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_white_papers_are_those_of_evaluations():
    np.testing.assert_array_equal(place(Papers()), np.asarray(images.to_rgb(square())))


def test_coloured_papers_have_one_colour_that_varies():
    colours = []
    for seed in range(40):
        pixels = place(Papers(("coloured",)), seed)
        np.testing.assert_array_equal(pixels[8:24, 8:24], np.broadcast_to(RED, (16, 16, 3)))
        pixels[8:24, 8:24] = pixels[0, 0]
        assert (pixels == pixels[0, 0]).all()
        colours.append(pixels[0, 0])
    low, high = np.min(colours, axis=0), np.max(colours, axis=0)
    assert (low >= 96).all() and (low < 130).all() and (high > 220).all()


def test_noisy_papers_are_noisy_and_pictures_are_not():
    deviations = []
    for seed in range(40):
        pixels = place(Papers(("noisy",)), seed)
        assert (pixels[8:24, 8:24] == RED).all()
        deviations.append(np.std(pixels[:8] - pixels[:8].mean(axis=(0, 1))))
    assert 3 < min(deviations) < 9 and 14 < max(deviations) < 23  # 2 to 8 % of 255, less what is clipped


def test_each_kind_is_chosen():
    kinds = [place(Papers(KINDS), seed) for seed in range(300)]
    white = sum((x[:8] == 255).all() for x in kinds)
    noisy = sum(np.std(x[:8] - x[:8].mean(axis=(0, 1))) > 1 for x in kinds)
    assert abs(white - 100) < 35 and abs(noisy - 100) < 35  # four standard deviations of 8.2


def test_sizes_and_shifts_by_hand():
    assert red_box(place(Papers(sizes=(0.5, 0.5)))) == (12, 12, 20, 20)
    np.testing.assert_allclose(place(Papers(sizes=(2.0, 2.0)))[3:-3, 3:-3], np.broadcast_to(RED, (26, 26, 3)), atol=1)
    boxes = np.array([red_box(place(Papers(sizes=(0.5, 0.5), shift=0.25), seed)) for seed in range(60)])
    assert (boxes[:, 2:] - boxes[:, :2] == 8).all()
    starts = boxes[:, :2]
    assert starts.min() == 4 and starts.max() == 20  # 12 +- 8
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.5


def test_rotations_by_hand():
    areas, widths = [], []
    for seed in range(40):
        pixels = place(Papers(rotate=45.0), seed)
        opacity = (255 - pixels[..., 1]) / (255 - RED[1])  # of red on white
        areas.append(opacity.sum())
        grid = np.arange(32) - 15.5
        centre = [(opacity.sum(axis=axis) * grid).sum() / opacity.sum() for axis in (0, 1)]
        np.testing.assert_allclose(centre, 0, atol=0.7)  # of a canvas of whole pixels
        left, _, right, _ = red_box(pixels)
        widths.append(right - left)
        assert (pixels[..., 0] >= RED[0] - 4).all()  # no dark fringe; bicubic interpolation overshoots
    np.testing.assert_allclose(areas, 256, rtol=0.03)
    assert min(widths) <= 17 and 20 <= max(widths) <= 23  # 16 to 16 * sqrt(2)


def test_transparent_pixels_leave_no_dark_fringe():
    pixels = place(Papers(sizes=(0.7, 0.7)))
    assert (pixels[..., 0] >= RED[0] - 1).all()  # between red and white; black would lower it


def test_only_transparent_images_get_papers():
    papers = Papers(("noisy",), (0.5, 0.5), 0.2)
    preprocess = Preprocess(32)
    opaque = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    plain, papered = Augment(preprocess), Augment(preprocess, papers=papers)
    for image in (png(opaque), png(opaque.convert("L"))):
        rngs = np.random.default_rng(1), np.random.default_rng(1)
        np.testing.assert_array_equal(plain(image, rngs[0]), papered(image, rngs[1]))
        assert rngs[0].random() == rngs[1].random()
    first, second = (papered(png(square()), np.random.default_rng(seed)) for seed in (1, 2))
    assert (first != second).any() and (first != plain(png(square()), np.random.default_rng(1))).any()


def test_crops_are_of_the_paper():
    augment = Augment(Preprocess(16), scale=(0.3, 0.5), papers=Papers(("coloured",), (0.25, 0.25)))
    pixels = augment(png(square()), np.random.default_rng(0))
    assert pixels.shape == (16, 16, 3) and not (pixels == 255).all(axis=-1).any()


def test_options():
    assert AugmentOptions().is_identity and AugmentOptions().make(Preprocess(8)) == Augment(Preprocess(8))
    options = AugmentOptions.parse({"papers": ("white", "noisy"), "sizes": (0.5, 1.0), "shift": 0.1}, "augment")
    assert not options.is_identity
    assert options.make(Preprocess(8)).papers == Papers(("white", "noisy"), (0.5, 1.0), 0.1)
    assert not AugmentOptions.parse({"shift": 0.1}, "augment").is_identity
    assert AugmentOptions.parse({"rotate": 10.0}, "augment").make(Preprocess(8)).papers == Papers(rotate=10.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"papers": ("pink",)}, "one or more of white, coloured, noisy"),
        ({"papers": ()}, "one or more of white, coloured, noisy"),
        ({"sizes": (1.0, 0.5)}, "two shares of the side"),
        ({"sizes": (0.5, 3.0)}, "augment.sizes"),
        ({"shift": -0.1}, "augment.shift"),
        ({"rotate": 200.0}, "augment.rotate"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(ConfigError, match=message):
        AugmentOptions.parse(values, "augment")
