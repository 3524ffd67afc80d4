"""The loaded model `Clip`, and `load`, which opens one.

Inputs are images and texts, outputs are NumPy arrays. Every method splits its input into batches of one size, sharded
over this host's devices, so that it compiles one program whatever the number of images.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from PIL import Image

from clip_jax import model as model_lib
from clip_jax.pretrained import LoadError, open_checkpoint
from clip_jax.pretrained.save import save_hf
from clip_jax.templates import read_templates, sentences
from train_jax import inference
from train_jax.data.images import Preprocess, normalize
from train_jax.data.text import AnyTokenizer
from train_jax.weights.layout import flat

__all__ = ["Clip", "LoadError", "load", "save_hf"]
log = logging.getLogger(__name__)

Picture = Image.Image | np.ndarray | str | Path  # arrays are uint8 [H, W, 3]
Pictures = Sequence[Picture] | np.ndarray

_READERS = 8  # threads that decode pictures; Pillow decodes outside Python's lock


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP for inference. Make one with `load`, or from its parts with `Clip.assemble`.

    Attributes:
      module: the Flax module; see `clip_jax.model`.
      variables: its parameters (`params`), and a ResNet's running statistics (`batch_stats`), copied to each of this
        host's devices.
      tokenizer: encodes texts as rows of ids.
      preprocess: resizes images to uint8 squares.
      fingerprint: SHA-256, in hexadecimal, of everything that changes an embedding: parameters, activation, vocabulary,
        preprocessing. It does not depend on where and in which format the model is stored.
      name: the source of the weights, for messages.
    """

    module: model_lib.CLIP
    variables: Any
    tokenizer: AnyTokenizer
    preprocess: Preprocess
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls, module: model_lib.CLIP, variables: Any, tokenizer: AnyTokenizer, preprocess: Preprocess, name: str
    ) -> "Clip":
        """Assembles a model: computes its fingerprint and copies the weights to this host's devices."""
        fingerprint = _fingerprint(module, variables, tokenizer, preprocess)
        return cls(module, inference.on_devices(variables), tokenizer, preprocess, fingerprint, name)

    def encode_image(self, images: Pictures, batch_size: int = 64) -> Float32[np.ndarray, "n dim"]:
        """Encodes images as embeddings of unit norm.

        Args:
          images: PIL images, paths, and uint8 [H, W, 3] arrays of any sizes, also mixed; or one array [n, H, W, 3].
          batch_size: maximum number of images that are encoded together.

        Raises BrokenSample, which names the image, if one cannot be read.
        """
        _check_list(images, "images", Image.Image | str | os.PathLike)
        size = self.preprocess.size
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:

            def rows(start: int, stop: int) -> np.ndarray:
                return np.stack(list(readers.map(self.preprocess.named, images[start:stop], range(start, stop))))

            return self._batched(self._programs.encode_image, rows, len(images), (size, size, 3), np.uint8, batch_size)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float32[np.ndarray, "n dim"]:
        """Encodes texts as embeddings of unit norm. Texts longer than the context are truncated, with a warning."""
        _check_list(texts, "texts", str)
        ids, cut = self.tokenizer.encode_flagged(list(texts))
        if cut.any():
            log.warning(
                "%d of %d text(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                cut.sum(), len(cut), self.tokenizer.context_length, texts[int(cut.argmax())],
            )  # fmt: skip
        return self._batched(
            self._programs.encode_text, lambda a, b: ids[a:b], len(ids), ids.shape[1:], np.int32, batch_size
        )

    def similarity(self, images: Pictures, texts: Sequence[str]) -> Float32[np.ndarray, "n_images n_texts"]:
        """Computes the logits of all pairs: cosine times the learned scale, plus the bias of a sigmoid model."""
        return self._logits(self.encode_image(images), self.encode_text(texts))

    def heat_map(self, images: Pictures, texts: Sequence[str]) -> Float32[np.ndarray, "n_images n_texts side side"]:
        """Computes the cosine of each text with each patch of each image (arXiv 2112.01071), rows from the top.

        The map covers the preprocessed image: with the mode "crop", the centre square of the image.
        """
        _check_list(images, "images", Image.Image | str | os.PathLike)
        text = self.encode_text(texts)
        size = self.preprocess.size

        def rows(start: int, stop: int) -> np.ndarray:
            return np.stack([self.preprocess.named(image, start + i) for i, image in enumerate(images[start:stop])])

        patches = self._batched(self._programs.encode_patches, rows, len(images), (size, size, 3), np.uint8, 16)
        side = math.isqrt(patches.shape[1])
        return np.einsum("npd,td->ntp", patches, text).reshape(len(images), len(text), side, side)

    def classify(
        self,
        images: Pictures,
        labels: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> Float32[np.ndarray, "n_images n_labels"]:
        """Classifies images zero-shot (arXiv 2103.00020, section 3.1): the probability of each label.

        Args:
          images: as in `encode_image`.
          labels: names of the classes.
          templates: sentences with `{}` in place of the label, or "@FILE" with one per line. The embeddings of a
            label's sentences are averaged (section 3.1.4).

        Rows sum to 1 (softmax). For a model trained with the sigmoid loss (arXiv 2303.15343) the probabilities of the
        labels are independent: all of them are low for an image that shows none of the labels.

        Raises ValueError for no labels, or a template without `{}`.
        """
        _check_list(labels, "labels", str)
        _check_list(templates, "templates", str)
        if not len(labels):
            raise ValueError("classify needs at least one label")
        templates = read_templates(templates)
        texts = self.encode_text(sentences(labels, templates)).reshape(len(labels), len(templates), -1)
        classes = texts.mean(axis=1)
        classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
        logits = self._logits(self.encode_image(images), classes)
        return np.asarray(self._programs.probabilities(logits))

    @functools.cached_property
    def _programs(self) -> "_Programs":
        return _compile(self.module, self.preprocess)

    def _logits(self, images: np.ndarray, texts: np.ndarray) -> Float32[np.ndarray, "n_images n_texts"]:
        return np.asarray(self._programs.logits(self.variables, images, texts))

    def _batched(
        self, encode: Callable, rows: Callable, count: int, shape: tuple[int, ...], dtype, batch_size: int
    ) -> Float32[np.ndarray, "n ..."]:
        return inference.batched(encode, self.variables, rows, count, jax.ShapeDtypeStruct(shape, dtype), batch_size)


class _Programs(NamedTuple):
    """The jitted functions of one model, which live as long as it does. Each compiles once per batch size."""

    encode_image: Callable  # (variables, uint8 [n, size, size, 3]) -> float32 [n, dim] of unit norm
    encode_patches: Callable  # (variables, uint8 [n, size, size, 3]) -> float32 [n, patches, dim] of unit norm
    encode_text: Callable  # (variables, int32 [n, length]) -> float32 [n, dim] of unit norm
    logits: Callable  # (variables, float32 [n, dim], float32 [m, dim]) -> float32 [n, m]
    probabilities: Callable  # float32 [n, m] -> float32 [n, m]


def _compile(module: model_lib.CLIP, preprocess: Preprocess) -> _Programs:
    def encode_image(variables, images):
        pixels = normalize(images, preprocess.mean, preprocess.std)
        return module.apply(variables, pixels, method="encode_image")

    def encode_patches(variables, images):
        pixels = normalize(images, preprocess.mean, preprocess.std)
        return module.apply(variables, pixels, method="encode_patches")

    def encode_text(variables, ids):
        return module.apply(variables, ids, method="encode_text")

    def logits(variables, images, texts):
        scale, bias = module.apply(variables, method="scale_and_bias")
        # Cosines are small numbers that a scale of up to 100 magnifies: full precision, also where the default is lower.
        return scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST) + bias

    probabilities = jax.nn.sigmoid if module.options.loss == "sigmoid" else jax.nn.softmax
    return _Programs(*map(jax.jit, (encode_image, encode_patches, encode_text, logits, probabilities)))


def _check_list(values, name: str, element_type) -> None:
    """Raises TypeError for a single value instead of a list, and for a list of texts with other elements."""
    # A single value would be iterated letter by letter, or pixel row by pixel row.
    if isinstance(values, element_type) or (isinstance(values, np.ndarray) and name == "images" and values.ndim == 3):
        raise TypeError(f"{name} must be a list, not one {type(values).__name__}: write [value]")
    for index, value in enumerate(values if element_type is str else ()):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{index}] is a {type(value).__name__}, {value!r}; it must be a text")


def _fingerprint(module: model_lib.CLIP, variables, tokenizer: AnyTokenizer, preprocess: Preprocess) -> str:
    digest = hashlib.sha256()
    identity = {**module.options.identity(), "eos_id": module.eos_id}  # options that do not follow from the shapes
    digest.update(json.dumps(identity, sort_keys=True).encode())
    leaves = {f"{collection}/{name}": x for collection, tree in variables.items() for name, x in flat(tree).items()}
    for name in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[name])
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(leaf.view(np.uint8).data if leaf.ndim else leaf.tobytes())
    digest.update(tokenizer.fingerprint.encode())
    digest.update(preprocess.to_json().encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load(path: str | Path, step: int | None = None, *, image_size: int | None = None) -> Clip:
    """Loads the CLIP stored at `path`.

    Args:
      path: a run directory of `train-jax` (averaged weights where there are any); a Hugging Face directory of CLIP or
        SigLIP; an open_clip directory; a weight file in one of these, open_clip's training checkpoints included; a
        `.pt` file of OpenAI's; a `.npz` file of big_vision's; or "hf:org/name", which huggingface_hub downloads.
      step: the checkpoint of a run directory; None for the newest readable one.
      image_size: side of the preprocessed images in pixels; position embeddings are interpolated. None: as trained.

    Sizes, activation, pooling, preprocessing and vocabulary come from the files. Raises LoadError, which
    describes the files, if they are none of these, are damaged, or do not belong together.
    """
    checkpoint = open_checkpoint(path, step)
    module = checkpoint.module(size=image_size)
    variables, name = checkpoint.variables(module)
    preprocess = dataclasses.replace(checkpoint.preprocess, size=module.options.image.size)
    return Clip.assemble(module, variables, checkpoint.tokenizer, preprocess, name)
