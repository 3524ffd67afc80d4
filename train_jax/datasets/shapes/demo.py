"""What the demos show of scenes: images to search and queries, prompts to draw and to paint."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.render import png, render
from train_jax.datasets.shapes.shapes_dataset_builder import make

TITLE, CREDIT, RUNS = "shapes", "", "runs/demo"
SOURCE, SPLIT = "shapes/32", "test"
MINUTES = (6, 5, 6, 1)  # of each part of the demo, on two cores
CONFIGS = {"clip": "clip/demo", "vqgan": "vqgan/demo", "dalle": "dalle/demo"}

SEARCHED = {"test": 1000, "novel": 200}  # number of images of each split in the searched folder
SIDE = 128  # side of the written images in pixels; the model's preprocessing resizes them
PLANTED_QUERY = "a small red circle above a large blue star"
QUERIES = (
    PLANTED_QUERY,
    "a green heart",
    "a large purple ring",
    "something yellow left of something black",
    "a star above a circle",
    "a pink cross in the top left",
    "a cyan cross",  # a pair that the training never shows
)
TEMPLATES = ("a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}")
CLASSIFIED = {"test": "", "novel": "a pair that the training never shows"}  # splits of the classified images, with a note
ZERO_SHOT = ((SOURCE, "test"), (SOURCE, "novel"))  # source and split: images like those of the training; unseen pairs

RECONSTRUCTED = {"test": 16, "novel": 8}  # number of images of each split

PROMPTS = (
    "a green heart",
    "a large purple ring",
    "a pink cross in the top left",
    "a yellow square",
    "a cyan cross",  # a pair that the training never shows
    "a small red circle above a large blue star",
    "a black ring left of an orange circle",
)

DRAWN = {"top_p": 0.9, "guidance": 5.0}  # options of the sampling

PAINTED = ("a red star", "a blue circle", "a green heart", "a yellow square", "a purple ring", "a black cross")
# The initial image is light grey like the backgrounds of the scenes, and a pixel loss keeps unconstrained regions near
# it. Crops are smaller than the image, which is no larger than CLIP's input. Jitter is off: prompts name colours.
PAINTING = {"steps": 300, "cuts": 8, "init_noise": "plain", "init_pixels": 3.0, "cut_min": 0.6, "jitter": 0.0}
# Changes for a painting that starts from a drawing by a DALL-E (`init_dalle`).
DRAWN_START = {"init_noise": None, "init_best": 8, "init_guidance": 5.0}
DRAWN_START |= {"init_pixels": 30.0, "cut_min": 0.8, "steps": 100}


def make_images(data: ConfigDict) -> Iterator[tuple[str, dict, bytes]]:
    """Makes the held-out images to search. Yields name, record and PNG file of each.

    Args:
      data: data options of the searching CLIP; scenes need none of them.
    """
    for split, count in SEARCHED.items():
        for index in range(count):
            scene, picture, _, _ = make(split, index, SIDE)
            yield f"{split}-{index:05d}", _describe(scene, split), png(picture)
    # Random scenes rarely match a query of two objects, so three images that match PLANTED_QUERY are added.
    for index in range(3):
        rng = np.random.default_rng(index)
        scene = sample_planted_scene(rng, ("plain", "noisy")[index % 2])
        yield f"hidden-{index}", _describe(scene, "hidden"), png(render(scene, SIDE, rng))


def make_examples(count: int, size: int) -> list[tuple[str, np.ndarray]]:
    """Makes prompts to paint, each with a true picture, uint8 [size, size, 3]: one object, colours and shapes balanced."""
    colours, kinds = len(scenes.COLOURS), len(scenes.SHAPES)
    pairs = [(i % colours, (i + i // colours) % kinds) for i in range(colours * kinds)]
    examples = []
    for index, (colour, kind) in enumerate(list(dict.fromkeys(pairs))[:count]):
        shown = scenes.Object(scenes.COLOURS[colour], scenes.SHAPES[kind], 0.5, 0.5, scenes.RADII[-1])
        picture = render(scenes.Scene((shown,), "plain"), size, np.random.default_rng(index))
        examples.append((scenes.noun_phrase(shown, "colour shape"), picture))
    return examples


def sample_planted_scene(rng: np.random.Generator, background: str) -> scenes.Scene:
    """Samples a scene that matches `PLANTED_QUERY`."""
    above, below = rng.uniform((0.35, 0.23), (0.65, 0.25)), rng.uniform((0.35, 0.74), (0.65, 0.76))
    return scenes.Scene(
        (
            scenes.Object("red", "circle", *above, scenes.RADII[0]),
            scenes.Object("blue", "star", *below, scenes.RADII[2], rng.uniform(-0.2, 0.2)),
        ),
        background,
    )


def _describe(scene: scenes.Scene, split: str) -> dict:
    """Returns the fields of a record that tell the truth about it."""
    return {"split": split, "label": scene.label, "scene": scene.to_json()}
