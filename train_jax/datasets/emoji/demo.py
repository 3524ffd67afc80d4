"""What the demos show of emoji: images to search and queries, prompts to draw and to paint."""

import io
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from train_jax.datasets.emoji import tarballs
from train_jax.datasets.emoji.captions import STYLES

TITLE, RUNS = "emoji", "runs/emoji"
CREDIT = "Drawings: " + "; ".join(dict.fromkeys(f"{x.author}, {x.licence}" for x in tarballs.ARTISTS.values()))
DRAWINGS = "emoji/64/held_out=none"
# What the VQGAN and DALL-E of `CONFIGS` know.
SOURCE, SPLIT = f"{DRAWINGS} where group=Animals & Nature | {DRAWINGS} where group=Food & Drink", "pairs"
SEARCHED = "emoji/64/held_out=twemoji/languages=en+el"
MINUTES = (91, 53, 75)  # of each part of the demo, as far as measured, on one slow core each
CONFIGS = {"clip": "clip/emoji", "vqgan": "vqgan/emoji", "dalle": "dalle/emoji"}

QUERIES = (
    "red apple",
    "bicycle",
    "octopus",
    "umbrella",
    "crescent moon",
    "insect",  # a keyword of several
    "λουλούδι",  # flower, in Greek
)
TEMPLATES = ("{}", *(f"{{}}, {style}" for style in STYLES.values()))
CLASSIFIED = {"artist": "by an artist whom the training never shows"}  # splits of the classified images, with a note
# Source and split: images of an unseen artist; unseen pairs of thing and artist. Without skin tones.
ZERO_SHOT = tuple((f"{SEARCHED} where tone=", split) for split in ("artist", "pairs"))

RECONSTRUCTED = {"pairs": 24}  # number of images of each split

PROMPTS = (
    "red apple, with black outlines",
    "snail, in glossy 3D",
    "strawberry, in flat colours",
    "owl, softly shaded",
    "octopus, in flat geometric shapes",
    "sunflower, with black outlines",
    "fox, in glossy 3D",
)

DRAWN = {"top_p": 0.9, "temperature": 0.7, "guidance": 1.0}  # options of the sampling

PAINTED = ("red apple", "sunflower", "owl", "pineapple", "mushroom", "octopus")
PAINTING = {"steps": 300, "cuts": 8, "init_noise": "plain", "init_pixels": 1.0, "cut_min": 0.6, "jitter": 0.0}
# Changes for a painting that starts from a drawing by a DALL-E (`init_dalle`).
DRAWN_START = {"init_noise": None, "init_best": 8, "init_temperature": 0.7}
DRAWN_START |= {"init_pixels": 10.0, "cut_min": 0.8, "steps": 100}


def make_images(data: ConfigDict) -> Iterator[tuple[str, dict, bytes]]:
    """Makes the images to search: all drawings without skin tone by the held-out artist, on white.

    Yields name, record and PNG file of each.

    Args:
      data: data options of the searching CLIP, of which the folder of data sets is used.
    """
    from train_jax.data import images, sources

    for record in sources.select(sources.from_config(data, SEARCHED, "artist"), ("tone=",)):
        file = io.BytesIO()
        images.decode(record["image"]).save(file, "PNG")
        truth = {key: value for key, value in record.items() if key != "image"} | {"split": "artist"}
        yield record["id"].replace("/", "-"), truth, file.getvalue()


def make_examples(count: int, size: int) -> list[tuple[str, np.ndarray]]:
    """Makes prompts to paint, each with a true picture, uint8 [size, size, 3]: the first things of the split `pairs`."""
    from train_jax.data import images, sources

    examples = {}
    for record in sources.select(sources.open_source(SOURCE, SPLIT), ("tone=",)):
        if record["name_en"] and record["name_en"] not in examples:
            picture = images.decode(record["image"]).resize((size, size), Image.Resampling.BICUBIC)
            examples[record["name_en"]] = np.asarray(picture)
        if len(examples) == count:
            break
    return list(examples.items())
