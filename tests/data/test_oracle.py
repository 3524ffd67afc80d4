"""The oracle reads pictures back: it recognises the objects of scenes that it does not know, also in degraded pictures.

The truth is the scene from which a picture was drawn. Generative models are graded by this oracle: its own error rate is
a lower bound of theirs.
"""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from train_jax.datasets.shapes import oracle
from train_jax.datasets.shapes.oracle import read
from train_jax.datasets.shapes.render import render
from train_jax.datasets.shapes.scene import COLOURS, SHAPES, Object, Scene
from train_jax.datasets.shapes.shapes_dataset_builder import make

COUNT = 150


def degraded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture blurred, with noise, and saved as a JPEG of low quality."""
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7)), float)
    noisy = np.clip(blurred + rng.normal(0, 0.03 * 255, picture.shape), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(noisy.round().astype(np.uint8)).save(buffer, "JPEG", quality=40)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def is_right(objects: tuple[Object, ...], scene: Scene) -> bool:
    """As many objects as there are, and every colour and shape."""
    return Counter((o.colour, o.shape) for o in objects) == Counter((o.colour, o.shape) for o in scene.objects)


def test_reads_clean_scenes():
    correct, offsets, sizes = 0, [], []
    for number in range(COUNT):
        scene, picture, *_ = make("test", number, 64)
        objects = read(picture)
        correct += is_right(objects, scene)
        if is_right(objects, scene) and len(objects) == 1:
            (a,), (b,) = objects, scene.objects
            offsets.append(64 * max(abs(a.x - b.x), abs(a.y - b.y)))
            sizes.append(a.radius / b.radius)
    assert correct >= 0.99 * COUNT, correct
    # Positions to half a pixel, radii to a twentieth.
    assert len(offsets) > COUNT / 2
    assert max(offsets) < 0.5 and max(abs(np.array(sizes) - 1)) < 0.05


def test_reads_degraded_pictures():
    rng = np.random.default_rng(0)
    correct = 0
    for number in range(COUNT):
        scene, picture, *_ = make("test", number, 64)
        correct += is_right(read(degraded(picture, rng)), scene)
    assert correct >= 0.95 * COUNT, correct


@pytest.mark.parametrize(("size", "share"), [(32, 0.95), (128, 0.99)])
def test_reads_other_sizes(size, share):
    count = 60
    correct = sum(is_right(read(picture), scene) for scene, picture, *_ in (make("novel", n, size) for n in range(count)))
    assert correct >= share * count, correct


def test_every_colour_and_shape_is_recognised():
    # Each kind alone, at the least size, on a plain background.
    for colour in COLOURS:
        for shape in SHAPES:
            scene = Scene((Object(colour, shape, 0.45, 0.55, 7.5 / 64, 0.1),))
            assert is_right(read(render(scene, 64, np.random.default_rng(0))), scene), (colour, shape)


def test_nothing_is_found_in_empty_pictures():
    for background in ("plain", "noisy"):
        for seed in range(10):
            assert read(render(Scene((), background), 64, np.random.default_rng(seed))) == ()
    for shade in (0, 128, 255):
        assert read(np.full((64, 64, 3), shade, np.uint8)) == ()


def test_images_that_are_no_scenes_can_be_read():
    """Saturated blocks have no background; what a model without a clue draws must not end an evaluation."""
    rng, readings = np.random.default_rng(0), set()
    for _ in range(60):
        blocks = rng.integers(0, 2, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1) * 255
        objects = read(blocks)
        readings.add(len(objects))
        assert all(o.colour in COLOURS and o.shape in SHAPES and np.isfinite(o.radius) for o in objects)
    tricolour = np.zeros((32, 32, 3), np.uint8)
    for channel, columns in enumerate((slice(0, 11), slice(11, 21), slice(21, 32))):
        tricolour[:, columns, channel] = 255
    assert all(o.colour in COLOURS for o in read(tricolour))
    assert len(readings) > 1


def test_objects_come_by_size():
    small, large = Object("red", "circle", 0.25, 0.5, 7.5 / 64), Object("blue", "square", 0.75, 0.5, 13.5 / 64)
    objects = read(render(Scene((small, large)), 64, np.random.default_rng(0)))
    assert [(o.colour, o.shape, o.size, o.position) for o in objects] == [
        ("blue", "square", "large", "right"),
        ("red", "circle", "small", "left"),
    ]


def test_specks_are_no_objects():
    picture = render(Scene(()), 64, np.random.default_rng(0)).copy()
    picture[10:12, 10:12] = 0  # 4 of 4,096 pixels
    assert read(picture) == ()


def test_unit_shapes_are_measured():
    # Areas in units of the squared radius, from school.
    areas = {
        "circle": np.pi * 0.95**2,
        "square": 1.6**2,
        "triangle": 1.8 * 1.75 / 2,
        "diamond": 2 / 1.3,
        "cross": 2 * 0.6 * 1.9 - 0.6**2,
        "ring": np.pi * (0.96**2 - 0.48**2),
        "star": 10 * 0.42 * np.sin(np.pi / 5) / 2,
    }
    for shape, area in areas.items():
        for angle in oracle._ANGLES:
            assert abs(oracle._MEASURES[shape, angle][0] / area - 1) < 0.01
