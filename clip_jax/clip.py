"""The loaded model: a small value with the verbs people come for, and `load`.

Data enters as pictures and texts, and leaves as NumPy arrays. Every verb turns its input into batches of one size,
split over this host's devices, so that each verb is one compiled program however many pictures it is given.
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
    """A model ready for use. Make one with `load`, or from its parts with `Clip.assemble`.

    Attributes:
      module: the towers and what joins them; see `clip_jax.model`.
      variables: its parameters (`params`), and a ResNet's running statistics (`batch_stats`), copied to each of this
        host's devices.
      tokenizer: turns texts into rows of ids.
      preprocess: turns pictures into uint8 squares.
      fingerprint: SHA-256, in hexadecimal, of all that decides what an embedding means: parameters, activation,
        vocabulary, preprocessing. Where and by whom the model was stored does not change it.
      name: where it came from, for people.
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
        """The model made of these parts: takes its fingerprint and copies the weights to this host's devices."""
        fingerprint = _fingerprint(module, variables, tokenizer, preprocess)
        return cls(module, inference.on_devices(variables), tokenizer, preprocess, fingerprint, name)

    def encode_image(self, images: Pictures, batch_size: int = 64) -> Float32[np.ndarray, "n dim"]:
        """Embeddings of pictures, of unit norm.

        Args:
          images: PIL pictures, paths, and uint8 [H, W, 3] arrays of any sizes, also mixed; or one array [n, H, W, 3].
          batch_size: how many at most go through the model together.

        Raises BrokenSample, naming the picture, if one cannot be read.
        """
        _check_list(images, "images", Image.Image | str | os.PathLike)
        size = self.preprocess.size
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:

            def rows(start: int, stop: int) -> np.ndarray:
                return np.stack(list(readers.map(self.preprocess.named, images[start:stop], range(start, stop))))

            return self._batched(self._programs.encode_image, rows, len(images), (size, size, 3), np.uint8, batch_size)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float32[np.ndarray, "n dim"]:
        """Embeddings of texts, of unit norm. A text of more tokens than the model reads is cut, and the log says so."""
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
        """Logits of every picture with every text: cosine times the learnt scale, plus the bias of a sigmoid model."""
        return self._logits(self.encode_image(images), self.encode_text(texts))

    def heat_map(self, images: Pictures, texts: Sequence[str]) -> Float32[np.ndarray, "n_images n_texts side side"]:
        """Where in a picture a text is: cosine of the text with each patch (arXiv 2112.01071), rows from the top.

        The map lies over what the model sees: with preprocessing "crop", the middle square of the picture.
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
        """Probability of each label for each picture (zero-shot classification, arXiv 2103.00020, section 3.1).

        Args:
          images: as in `encode_image`.
          labels: names of the classes.
          templates: sentences with `{}` where the label goes, or "@FILE" with one a line. The embeddings of a label's
            sentences are averaged (section 3.1.4).

        Rows sum to 1 (softmax), except for a model trained with the sigmoid loss, whose probabilities are independent
        answers (arXiv 2303.15343): a picture that shows none of the labels gets low ones throughout.

        Raises ValueError for no labels, or a template without `{}`.
        """
        _check_list(labels, "labels", str)
        _check_list(templates, "templates", str)
        if not len(labels):
            raise ValueError("classify needs at least one label")
        templates = read_templates(templates)
        parts = self.encode_text(sentences(labels, templates)).reshape(len(labels), len(templates), -1)
        mean = parts.mean(axis=1)
        mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
        logits = self._logits(self.encode_image(images), mean)
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
    """The compiled functions of one model, kept with it and freed with it. Each compiles once for a size of batch."""

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


def _check_list(values, what: str, kinds) -> None:
    """TypeError for a single value, and for an entry that is no text where texts belong."""
    # A single value would be taken apart letter by letter, or pixel row by pixel row.
    if isinstance(values, kinds) or (isinstance(values, np.ndarray) and what == "images" and values.ndim == 3):
        raise TypeError(f"{what} must be a list, not one {type(values).__name__}: write [value]")
    for number, value in enumerate(values if kinds is str else ()):
        if not isinstance(value, str):
            raise TypeError(f"{what}[{number}] is a {type(value).__name__}, {value!r}; it must be a text")


def _fingerprint(module: model_lib.CLIP, variables, tokenizer: AnyTokenizer, preprocess: Preprocess) -> str:
    digest = hashlib.sha256()
    meaning = {**module.options.identity(), "eos_id": module.eos_id}  # what the shapes of parameters do not tell
    digest.update(json.dumps(meaning, sort_keys=True).encode())
    leaves = {f"{kind}/{name}": x for kind, tree in variables.items() for name, x in flat(tree).items()}
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
    """The model that `path` holds.

    Args:
      path: a run directory of `train-jax` (averaged weights where there are any); a Hugging Face directory of CLIP or
        SigLIP; an open_clip directory; a weight file in one of these, open_clip's training checkpoints included; a `.pt`
        file of OpenAI's; a `.npz` file of big_vision's; or "hf:org/name", which huggingface_hub brings.
      step: of a run directory, the checkpoint; None for the newest readable one.
      image_size: side in pixels at which pictures shall be seen; positions are interpolated. None: as trained.

    Sizes, activation, pooling, preprocessing and vocabulary come from the files. Raises LoadError that says what was
    found if they are none of these, are damaged, or do not belong together.
    """
    found = open_checkpoint(path, step)
    module = found.module(size=image_size)
    weights, name = found.variables(module)
    preprocess = dataclasses.replace(found.preprocess, size=module.options.image.size)
    return Clip.assemble(module, weights, found.tokenizer, preprocess, name)
