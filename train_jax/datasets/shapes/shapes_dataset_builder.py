"""TFDS builder of the rendered scenes. Needs no download and no TensorFlow."""

import dataclasses
import io
import zlib

import numpy as np
import tensorflow_datasets as tfds

from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.render import png, render

SEED = 2026
SIZES = (32, 64, 128)
EXAMPLES = {"train": 20_000, "test": 2_000, "novel": 1_000}


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Config of the builder: side of the images in pixels, and number of scenes in `train`."""

    size: int = 0
    train: int = 0


def parse(text: str) -> Config:
    """Parses `SIZE[/train=N]`. Raises ValueError for another size, and for a number of scenes that is not positive."""
    size, slash, option = text.partition("/")
    if size not in map(str, SIZES):
        raise ValueError(f"there is no size {size!r}: choose one of {', '.join(map(str, SIZES))}")
    key, _, number = option.partition("=")
    if slash and not (key == "train" and number.isascii() and number.isdecimal() and int(number)):
        raise ValueError(f"{option!r} is no option: add train=N, a number of scenes")
    train = int(number) if slash else EXAMPLES["train"]
    name = size if train == EXAMPLES["train"] else f"{size},train={train}"
    return Config(name=name, description=f"{size} x {size} pixels", size=int(size), train=train)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes of one or two coloured shapes. The split `novel` has pairs that never occur in `train`."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Negatives: a false caption like each caption.", "1.0.0": "First release."}

    def _create_builder_config(self, builder_config, version):
        return builder_config  # without TFDS's warning at each opening that a class does not list all of its configs

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "negatives": tfds.features.Sequence(tfds.features.Text()),
                    "label": np.int64,
                    "scene": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            )
        )

    def _split_generators(self, dl_manager):
        counts = EXAMPLES | {"train": self.builder_config.train}
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int):
        for index in range(count):
            scene, image, texts, negatives = make(split, index, self.builder_config.size)
            yield (
                index,
                {
                    # TFDS would need TensorFlow to encode an array, so pass an encoded file.
                    "image": io.BytesIO(png(image)),
                    "captions": texts,
                    "negatives": negatives,
                    "label": scene.label,
                    "scene": scene.to_json(),
                    "id": f"{split}-{index:05d}",
                },
            )


def make(split: str, index: int, size: int) -> tuple[scenes.Scene, np.ndarray, list[str], list[str]]:
    """Makes scene, image, captions and negatives of an example, deterministically from split, index and size.

    Negatives are false captions, one like each caption.
    """
    key = (SEED, zlib.crc32(split.encode()), index)
    rng = np.random.default_rng(key)
    scene = scenes.sample(rng, novel=split == "novel")
    texts = scenes.captions(scene, rng)
    image = render(scene, size, rng)
    rng = np.random.default_rng((*key, 1))  # rendering takes more random numbers for larger images
    return scene, image, texts, [scenes.corrupt(text, scene, rng) for text in texts]
