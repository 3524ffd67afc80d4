"""Colour jitter against Pillow's enhancements and the standard library's YIQ."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from train_jax.data.color_jitter import ColorJitter, color_matrix
from train_jax.data.images import Augment, Preprocess
from train_jax.data.options import AugmentOptions
from train_jax.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(60, 160, (8, 6, 3), np.uint8)  # nothing is clipped


class Chosen(np.random.Generator):
    """A random generator whose uniform numbers are the upper ends of their ranges, and whose shares are 0."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self) -> float:
        return 0.0

    def uniform(self, low, high):
        return np.asarray(high) * 1.0


@pytest.mark.parametrize(
    ("jitter", "enhance", "factor"),
    [
        (ColorJitter(brightness=0.3), ImageEnhance.Brightness, 1.3),
        (ColorJitter(contrast=0.4), ImageEnhance.Contrast, 1.4),
        (ColorJitter(saturation=0.5), ImageEnhance.Color, 1.5),
        (ColorJitter(grey=1.0), ImageEnhance.Color, 0.0),
    ],
)
def test_each_change_is_pillows(jitter, enhance, factor):
    expected = enhance(Image.fromarray(PIXELS)).enhance(factor)
    np.testing.assert_allclose(jitter(PIXELS, Chosen()).astype(int), np.asarray(expected, int), atol=2)  # Pillow rounds more


def test_a_hue_is_an_angle_in_yiq():
    turned = ColorJitter(hue=0.1)(PIXELS, Chosen())
    for before, after in zip(PIXELS.reshape(-1, 3) / 255, turned.reshape(-1, 3) / 255, strict=True):
        (y0, i0, q0), (y1, i1, q1) = colorsys.rgb_to_yiq(*before), colorsys.rgb_to_yiq(*after)
        assert abs(y0 - y1) < 0.01 and abs(complex(i1, q1) - complex(i0, q0) * np.exp(0.2j * np.pi)) < 0.02
    np.testing.assert_allclose(color_matrix(1.0, np.pi) @ color_matrix(1.0, np.pi), np.eye(3), atol=1e-12)


def test_changes_are_composed_in_order_and_clipped_once():
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.2)
    x = PIXELS.reshape(-1, 3) * 1.5
    x = 1.5 * x - 0.5 * (x.mean(axis=0) @ [0.299, 0.587, 0.114])
    expected = np.clip(np.rint(x @ color_matrix(1.5, 0.4 * np.pi).T), 0, 255)
    np.testing.assert_allclose(jitter(PIXELS, Chosen()).reshape(-1, 3), expected, atol=1)


def test_shares_of_images_are_changed():
    rng = np.random.default_rng(1)
    changed = [(ColorJitter(0.4, probability=0.3)(PIXELS, rng) != PIXELS).any() for _ in range(400)]
    assert abs(np.mean(changed) - 0.3) < 0.07
    grey = [np.ptp(ColorJitter(grey=0.2)(PIXELS, rng), axis=-1).max() == 0 for _ in range(400)]
    assert abs(np.mean(grey) - 0.2) < 0.07
    assert ColorJitter()(PIXELS, rng) is PIXELS


def test_options():
    options = AugmentOptions.parse({"color_jitter": (0.4, 0.3, 0.2, 0.1), "gray_scale_prob": 0.1}, "augment")
    augment = options.make(Preprocess(8))
    assert augment == Augment(Preprocess(8), color_jitter=ColorJitter(0.4, 0.3, 0.2, 0.1, 1.0, 0.1))
    assert not options.is_identity
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[:6, :6]).save(buffer, "PNG")
    rngs = [np.random.default_rng(3) for _ in range(2)]
    plain = Augment(Preprocess(8))(buffer.getvalue(), rngs[0])
    np.testing.assert_array_equal(augment(buffer.getvalue(), rngs[0]), augment.color_jitter(plain, rngs[1]))
    assert AugmentOptions.parse({"color_jitter": (0.4, 0.0, 0.0, 0.0), "color_jitter_prob": 0.0}, "augment").is_identity
    for wrong in ((0.1,), (0.1, 0.1, 0.1, 0.6)):
        with pytest.raises(ConfigError, match=r"augment.color_jitter .* four numbers"):
            AugmentOptions.parse({"color_jitter": wrong}, "augment")
