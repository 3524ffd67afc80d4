"""TFDS builder of the rendered scenes. Needs no download and no TensorFlow."""

import io
import zlib

import numpy as np
import tensorflow_datasets as tfds

from train_jax.datasets.shapes import scene as scenes
from train_jax.datasets.shapes.render import png, render

SEED = 2026
EXAMPLES = {"train": 20_000, "test": 2_000, "novel": 1_000}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes of one or two coloured shapes. The split `novel` has pairs that never occur in `train`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=str(size), description=f"{size} x {size} pixels") for size in (32, 64, 128)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "label": np.int64,
                    "scene": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in EXAMPLES}

    def _generate_examples(self, split: str):
        size = int(self.builder_config.name)
        for index in range(EXAMPLES[split]):
            scene, image, texts = make(split, index, size)
            yield (
                index,
                {
                    # TFDS would need TensorFlow to encode an array, so pass an encoded file.
                    "image": io.BytesIO(png(image)),
                    "captions": texts,
                    "label": scene.label,
                    "scene": scene.to_json(),
                    "id": f"{split}-{index:05d}",
                },
            )


def make(split: str, index: int, size: int) -> tuple[scenes.Scene, np.ndarray, list[str]]:
    """Makes scene, image and captions of an example, deterministically from split, index and size."""
    rng = np.random.default_rng((SEED, zlib.crc32(split.encode()), index))
    scene = scenes.sample(rng, novel=split == "novel")
    texts = scenes.captions(scene, rng)
    return scene, render(scene, size, rng), texts
