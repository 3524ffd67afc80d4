"""CLIP for inference: the class `Clip`, and `load`, which opens a checkpoint.

Inputs are images and texts, outputs are NumPy arrays. Every method splits its input into batches of fixed size, sharded
over the devices of this host, so that each method compiles only once.
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

from clip_jax import card
from clip_jax import model as model_lib
from clip_jax.pretrained import LoadError, open_checkpoint
from clip_jax.pretrained import single_file as clip_file
from clip_jax.pretrained.save import save_hf
from clip_jax.pretrained.save_open_clip import save_open_clip
from clip_jax.templates import fill_templates, read_templates
from nn_jax.mixed_precision import round_weights
from train_jax import inference, upload
from train_jax.compute import inference_dtype
from train_jax.data.images import Preprocess
from train_jax.data.text import AnyTokenizer
from train_jax.weights import single_file
from train_jax.weights.layout import flatten, hash_arrays

__all__ = ["Clip", "LoadError", "load", "push", "save", "save_hf", "save_open_clip", "to_bytes"]
log = logging.getLogger(__name__)

Picture = Image.Image | np.ndarray | str | Path  # arrays are uint8 [H, W, 3]
Pictures = Sequence[Picture] | np.ndarray

_READERS = 8  # number of threads that decode images; Pillow releases the GIL while decoding


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP model for inference. Use `load` to open a checkpoint, or `Clip.assemble` to combine parts.

    Attributes:
      module: Flax module; see `clip_jax.model`.
      variables: parameters (`params`) and, for a ResNet, running statistics (`batch_stats`), replicated on the devices
        of this host.
      tokenizer: tokenizer of the texts.
      preprocess: preprocessing of images to uint8 squares.
      fingerprint: hexadecimal SHA-256 of everything that changes an embedding: parameters, activation, vocabulary,
        preprocessing. It does not depend on the path or format of the checkpoint.
      name: source of the weights, for messages.
    """

    module: model_lib.CLIP
    variables: Any
    tokenizer: AnyTokenizer
    preprocess: Preprocess
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls,
        module: model_lib.CLIP,
        variables: Any,
        tokenizer: AnyTokenizer,
        preprocess: Preprocess,
        name: str,
        dtype: str | None = None,
    ) -> "Clip":
        """Combines the parts of a model, computes its fingerprint and copies the weights to the devices.

        Args:
          dtype: precision to which weights are rounded, and in which the model computes; None: that of `module`, with the
            weights as they are.
        """
        fingerprint = _compute_fingerprint(module, variables, tokenizer, preprocess)
        if dtype is not None:
            module = module.clone(compute=dataclasses.replace(module.compute, dtype=dtype))
            variables = round_weights(variables, module.compute.array_dtype)
        return cls(module, inference.on_devices(variables), tokenizer, preprocess, fingerprint, name)

    def encode_image(
        self, images: Pictures, batch_size: int = 64, *, normalize: bool = True
    ) -> Float32[np.ndarray, "n dim"]:
        """Encodes images as embeddings of unit norm.

        Args:
          images: sequence of PIL images, paths and uint8 [H, W, 3] arrays of any size; or one uint8 array [n, H, W, 3].
          batch_size: maximum number of images per batch.
          normalize: whether embeddings are normalised to unit length; False: the output of the image tower.

        Raises BrokenSample, which names the image, if an image cannot be read.
        """
        _check_list(images, "images", Image.Image | str | os.PathLike)
        program = self._programs.encode_image if normalize else self._programs.project_image
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:

            def read_batch(start: int, stop: int) -> np.ndarray:
                return self.preprocess.batch(images[start:stop], start, pool.map)

            return self._encode_batched(
                program, read_batch, len(images), self.preprocess.shape, np.uint8, batch_size
            )

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float32[np.ndarray, "n dim"]:
        """Encodes texts as embeddings of unit norm. Truncates texts longer than the context, with a warning."""
        _check_list(texts, "texts", str)
        ids, truncated = self.tokenizer.encode_flagged(list(texts))
        if truncated.any():
            log.warning(
                "%d of %d text(s) are longer than the %d tokens this model reads and were cut; the first is %r",
                truncated.sum(), len(truncated), self.tokenizer.context_length, texts[int(truncated.argmax())],
            )  # fmt: skip
        return self._encode_batched(
            self._programs.encode_text, lambda a, b: ids[a:b], len(ids), ids.shape[1:], np.int32, batch_size
        )

    def similarity(self, images: Pictures, texts: Sequence[str]) -> Float32[np.ndarray, "n_images n_texts"]:
        """Computes the logits of all pairs: the cosine times the learned scale, plus the bias for a sigmoid model."""
        return self._compute_logits(self.encode_image(images), self.encode_text(texts))

    def heat_map(self, images: Pictures, texts: Sequence[str]) -> Float32[np.ndarray, "n_images n_texts side side"]:
        """Computes the cosine of each text with each patch of each image (arXiv 2112.01071).

        Maps are of the preprocessed image: with the mode "crop", of the centre square; with the mode "native", of the image
        squashed to a square. Row 0 is the top.
        """
        _check_list(images, "images", Image.Image | str | os.PathLike)
        text = self.encode_text(texts)
        preprocess = self.preprocess.square

        def read_batch(start: int, stop: int) -> np.ndarray:
            return preprocess.batch(images[start:stop], start)

        patches = self._encode_batched(
            self._programs.encode_patches, read_batch, len(images), preprocess.shape, np.uint8, 16
        )
        side = math.isqrt(patches.shape[1])
        return np.einsum("npd,td->ntp", patches, text).reshape(len(images), len(text), side, side)

    def classify(
        self,
        images: Pictures,
        labels: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> Float32[np.ndarray, "n_images n_labels"]:
        """Computes the zero-shot probability of each label for each image (arXiv 2103.00020, section 3.1).

        Args:
          images: as in `encode_image`.
          labels: names of the classes.
          templates: prompt templates with `{}` for the label, or "@FILE" with one per line. The embeddings of the
            prompts of a label are averaged (section 3.1.4).

        Rows sum to 1 (softmax). For a model trained with the sigmoid loss (arXiv 2303.15343) the probabilities of the
        labels are independent: all are low for an image that shows none of the labels.

        Raises ValueError if there are no labels, or a template has no `{}`.
        """
        _check_list(labels, "labels", str)
        _check_list(templates, "templates", str)
        if not len(labels):
            raise ValueError("classify needs at least one label")
        templates = read_templates(templates)
        texts = self.encode_text(fill_templates(labels, templates)).reshape(len(labels), len(templates), -1)
        classes = texts.mean(axis=1)
        classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
        logits = self._compute_logits(self.encode_image(images), classes)
        return np.asarray(self._programs.probabilities(logits))

    @property
    def dtype(self) -> str:
        """Precision of the computation: float32 or bfloat16."""
        return self.module.compute.dtype

    @functools.cached_property
    def _programs(self) -> "Programs":
        return compile_programs(self.module, self.preprocess)

    def _compute_logits(self, images: np.ndarray, texts: np.ndarray) -> Float32[np.ndarray, "n_images n_texts"]:
        return np.asarray(self._programs.logits(self.variables, images, texts))

    def _encode_batched(
        self, encode: Callable, read_batch: Callable, count: int, shape: tuple[int, ...], dtype, batch_size: int
    ) -> Float32[np.ndarray, "n ..."]:
        return inference.batched(
            encode, self.variables, read_batch, count, jax.ShapeDtypeStruct(shape, dtype), batch_size
        )


class Programs(NamedTuple):
    """Jitted functions of one model. Each function compiles once per batch size."""

    encode_image: Callable  # (variables, uint8 [n, *preprocess.shape]) -> float32 [n, dim] of unit norm
    project_image: Callable  # the same, not normalised
    encode_patches: Callable  # (variables, uint8 [n, size, size, 3]) -> float32 [n, patches, dim] of unit norm
    encode_text: Callable  # (variables, int32 [n, length]) -> float32 [n, dim] of unit norm
    logits: Callable  # (variables, float32 [n, dim], float32 [m, dim]) -> float32 [n, m]
    probabilities: Callable  # float32 [n, m] -> float32 [n, m]


def compile_programs(module: model_lib.CLIP, preprocess: Preprocess) -> Programs:
    """Jits the functions of `Programs` for a model and its preprocessing."""

    def encode_image(variables, images):
        return module.apply(variables, preprocess.normalize(images), method="encode_image")

    def project_image(variables, images):
        return module.apply(variables, preprocess.normalize(images), method="project_image")

    def encode_patches(variables, images):
        return module.apply(variables, preprocess.square.normalize(images), method="encode_patches")

    def encode_text(variables, ids):
        return module.apply(variables, ids, method="encode_text")

    def logits(variables, images, texts):
        scale, bias = module.apply(variables, method="scale_and_bias")
        # Full precision, since a scale of up to 100 magnifies rounding errors of the cosines.
        return scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST) + bias

    probabilities = jax.nn.sigmoid if module.options.loss == "sigmoid" else jax.nn.softmax
    return Programs(*map(jax.jit, (encode_image, project_image, encode_patches, encode_text, logits, probabilities)))


def _check_list(values, name: str, element_type) -> None:
    """Raises TypeError if `values` is a single value, or a list of texts with elements that are not strings."""
    # Iterating over a single value would yield letters or rows of pixels.
    if isinstance(values, element_type) or (isinstance(values, np.ndarray) and name == "images" and values.ndim == 3):
        raise TypeError(f"{name} must be a list, not one {type(values).__name__}: write [value]")
    for index, value in enumerate(values if element_type is str else ()):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{index}] is a {type(value).__name__}, {value!r}; it must be a string")


def _compute_fingerprint(module: model_lib.CLIP, variables, tokenizer: AnyTokenizer, preprocess: Preprocess) -> str:
    digest = hashlib.sha256()
    identity = {**module.options.identity(), "eos_id": module.eos_id}  # not implied by parameter shapes
    digest.update(json.dumps(identity, sort_keys=True).encode())
    # Scalars count as vectors of one number.
    leaves = {f"{kind}/{name}": np.atleast_1d(x) for kind, tree in variables.items() for name, x in flatten(tree).items()}
    hash_arrays(digest, leaves)
    digest.update(tokenizer.fingerprint.encode())
    digest.update(preprocess.to_json().encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def load(
    path: str | Path,
    step: int | None = None,
    *,
    image_size: int | None = None,
    max_patches: int | None = None,
    dtype: str | None = "auto",
) -> Clip:
    """Loads the CLIP stored at `path`.

    Args:
      path: a run directory of `train-jax` (averaged weights, if it has any); a `.safetensors` file of `save`; a Hugging Face
        directory of CLIP, MetaCLIP 2, Chinese-CLIP, SigLIP or SigLIP 2; an open_clip directory, also of SigLIP, CLIPA, CoCa,
        EVA and the Perception Encoder; a weight file in such a directory, including open_clip's training checkpoints; a
        `.pt` file from OpenAI or Long-CLIP; a `.npz` file from big_vision; or "hf:org/name", which is downloaded.
      step: training step of the checkpoint in a run directory; None: the newest readable checkpoint.
      image_size: side of the preprocessed images in pixels; position embeddings are interpolated. None: as trained.
      max_patches: for a model of native aspect ratio (NaFlex), the largest number of patches of an image, to which all are
        padded. None: as the files say.
      dtype: precision, "float32" or "bfloat16"; "auto": bfloat16 on accelerators that have it, float32 on a CPU; None: the
        precision of the training, with float32 weights. In bfloat16, embeddings differ by 1e-2 at most, and kernels and
        token embeddings need half the memory; the fingerprint is the same.

    Sizes, activation, pooling, preprocessing and vocabulary are read from the files. Raises LoadError, which describes
    the files, if they are of an unknown format, damaged or inconsistent.
    """
    dtype = dtype and inference_dtype(dtype)
    checkpoint = open_checkpoint(path, step)
    is_native = checkpoint.preprocess.is_native
    if (image_size if is_native else max_patches) is not None:
        name, other = ("image_size", "max_patches") if is_native else ("max_patches", "image_size")
        mode = checkpoint.preprocess.mode
        raise LoadError(f"{path}: {name} has no meaning for a model whose images have the mode {mode!r}: set {other}")
    module = checkpoint.module(size=image_size)
    variables, name = checkpoint.variables(module)
    preprocess = dataclasses.replace(checkpoint.preprocess, size=module.options.image.size)
    if max_patches is not None:
        preprocess = dataclasses.replace(preprocess, max_patches=max_patches)
    return Clip.assemble(module, variables, checkpoint.tokenizer, preprocess, name, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def to_bytes(clip: Clip) -> bytes:
    """Serialises a model with tokenizer and preprocessing as the content of a `.safetensors` file that `load` opens.

    The fingerprint is kept. Raises ValueError for a model whose weights were rounded when it was loaded.
    """
    variables = single_file.exact_variables(clip.variables, clip.name, clip.dtype)
    return clip_file.to_bytes(clip.module.options, clip.module.compute, clip.tokenizer, clip.preprocess, variables)


def save(clip: Clip, path: str | Path) -> None:
    """Writes the model to a `.safetensors` file that `load` opens.

    Raises ValueError for another suffix, and FileExistsError if the file exists.
    """
    single_file.write(path, lambda: to_bytes(clip))


def push(model: Any, repository: str, **options: Any) -> str:
    """Uploads a CLIP to the Hugging Face Hub, with a card. Returns its address, which `load` opens.

    Args:
      model: a loaded CLIP, which becomes one file of `save`; or the path of a run directory, or of a folder of `save_hf` or
        `save_open_clip`.
      repository, options: see `train_jax.upload.push`: "org/name"; `private`, `revision`, `licence`, `step`.
    """
    if isinstance(model, Clip):
        return upload.push_model(model, repository, save=save, kind=card.CLIP, **options)
    return upload.push(model, repository, **options)
