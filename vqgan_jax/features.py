"""Feature networks for distances between image collections: a CLIP, or the Inception network of FID."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

import clip_jax
from train_jax import inference
from train_jax.data.sources import DataError, Source
from train_jax.data.subset import Subset, first
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import inception
from vqgan_jax.distribution import cmmd, frechet_distance

_INCEPTION = "inception:"
_BATCH = 64  # maximum batch size of Inception


@dataclasses.dataclass(frozen=True)
class Features:
    """A network that computes features of images.

    Attributes:
      name: name of the network; distances of different networks are not comparable.
      encode: uint8 [n, H, W, 3] -> float32 [n, d].
      unit: whether features have unit norm, as CMMD requires.
    """

    name: str
    encode: Callable[[np.ndarray], Float32[np.ndarray, "n d"]]
    unit: bool

    def compare(self, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        """Computes distances between two collections of features; keys contain the name of the network."""
        distances = {f"frechet/{self.name}": frechet_distance(a, b)}
        return distances | ({f"cmmd/{self.name}": cmmd(a, b)} if self.unit else {})

    def extract(self, images: UInt8[np.ndarray, "n H W 3"]) -> Float32[np.ndarray, "n d"]:
        """Computes the features of images that all hosts hold; the computation is split over hosts."""
        return inference.split_over_hosts(self.encode, images)


def take_images(source: Source, count: int) -> Subset:
    """Returns the first `count` records of a source, or all if `count` is 0, for a distance from them.

    Raises DataError for a single one, of which a collection has no spread.
    """
    records = first(source, count)
    if len(records) < 2:
        raise DataError(f"{source.name}: distances of collections need two or more images, not {len(records)}")
    return records


def open_features(spec: str) -> Features:
    """Opens the feature network `spec`: a CLIP (anything that `clip_jax.load` opens), or `inception:FILE`.

    Raises ConfigError if `spec` is empty or cannot be opened.
    """
    if not spec:
        raise ConfigError(
            "features = '' names no network: give a CLIP (anything that clip_jax.load opens), or inception:FILE with the "
            "weights pt_inception-2015-12-05-6726825d.pth"
        )
    try:
        if spec.startswith(_INCEPTION):
            return _load_inception(Path(spec.removeprefix(_INCEPTION)))
        clip = clip_jax.load(spec, dtype="float32")  # the same distances on every machine
    except (LoadError, OSError) as error:
        raise ConfigError(f"features = {spec!r}: {error}") from error
    return Features(f"clip-{clip.fingerprint[:8]}", lambda images: clip.encode_image(list(images)), unit=True)


def _load_inception(path: Path) -> Features:
    """Loads Inception-v3 as a feature extractor of uint8 images."""
    weights = inference.on_devices(inception.load(path))
    jitted = jax.jit(lambda w, x: inception.extract_features(w, x.astype(jnp.float32) / 255))

    def encode(images: np.ndarray) -> np.ndarray:
        row = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
        return inference.batched(jitted, weights, lambda a, b: images[a:b], len(images), row, _BATCH)

    return Features("inception", encode, unit=False)
