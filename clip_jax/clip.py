"""The loaded model: a small value with the verbs people come for, and `load`, which opens a run directory.

Data enters as pictures and texts, and leaves as NumPy arrays. Every verb turns its input into batches of one size,
split over this host's devices, so that each verb is one compiled program however many pictures it is given.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32
from PIL import Image

from clip_jax import model as model_lib
from train_jax import checkpoint
from train_jax.data.images import BrokenSample, Preprocess, normalize
from train_jax.data.text import Tokenizer

log = logging.getLogger(__name__)

Picture = Image.Image | np.ndarray | str | Path  # arrays are uint8 [H, W, 3]
Pictures = Sequence[Picture] | np.ndarray

_RUN_DIRECTORY = (
    "load opens run directories, as train-jax writes them: config.json, tokenizer.json, preprocess.json, artifacts.json "
    "and checkpoints/"
)
_PLAYER = "clip"  # the key of a run's parameters
_READERS = 8  # threads that decode pictures; Pillow decodes outside Python's lock


class LoadError(ValueError):
    """What was given to `load` is no model that it opens, or its parts do not belong together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A model ready for use. Make one with `load`, or from its parts with `Clip.assemble`.

    Attributes:
      module: the towers and what joins them; see `clip_jax.model`.
      params: its parameters, copied to each of this host's devices.
      tokenizer: turns texts into rows of ids.
      preprocess: turns pictures into uint8 squares.
      fingerprint: SHA-256, in hexadecimal, of all that decides what an embedding means: parameters, activation,
        vocabulary, preprocessing. Where and by whom the model was stored does not change it.
      name: where it came from, for people.
    """

    module: model_lib.CLIP
    params: Any
    tokenizer: Tokenizer
    preprocess: Preprocess
    fingerprint: str
    name: str

    @classmethod
    def assemble(
        cls, module: model_lib.CLIP, params: Any, tokenizer: Tokenizer, preprocess: Preprocess, name: str
    ) -> "Clip":
        """The model made of these parts: takes its fingerprint and copies the parameters to this host's devices."""
        fingerprint = _fingerprint(module, params, tokenizer, preprocess)
        mesh = jax.make_mesh(
            (jax.local_device_count(),), ("batch",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
        )
        return cls(module, jax.device_put(params, NamedSharding(mesh, P())), tokenizer, preprocess, fingerprint, name)

    def encode_image(self, images: Pictures, batch_size: int = 64) -> Float32[np.ndarray, "n dim"]:
        """Embeddings of pictures, of unit norm.

        Args:
          images: PIL pictures, paths, and uint8 [H, W, 3] arrays of any sizes, also mixed; or one array [n, H, W, 3].
          batch_size: how many at most go through the model together.

        Raises BrokenSample, naming the picture, if one cannot be read.
        """
        _refuse_single(images, "images", Image.Image | str | os.PathLike)
        size = self.preprocess.size
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:

            def rows(start: int, stop: int) -> np.ndarray:
                return np.stack(list(readers.map(self._read, images[start:stop], range(start, stop))))

            return self._batched(self._programs.encode_image, rows, len(images), (size, size, 3), np.uint8, batch_size)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float32[np.ndarray, "n dim"]:
        """Embeddings of texts, of unit norm. A text of more tokens than the model reads is cut, and the log says so."""
        _refuse_single(texts, "texts", str)
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
          templates: sentences with `{}` where the label goes. The embeddings of a label's sentences are averaged
            (section 3.1.4).

        Rows sum to 1 (softmax), except for a model trained with the sigmoid loss, whose probabilities are independent
        answers (arXiv 2303.15343): a picture that shows none of the labels gets low ones throughout.

        Raises ValueError for no labels, or a template without `{}`.
        """
        _refuse_single(labels, "labels", str)
        _refuse_single(templates, "templates", str)
        if not len(labels) or not len(templates):
            raise ValueError("classify needs at least one label and one template")
        for template in templates:
            if "{}" not in template:
                raise ValueError(
                    f"template {template!r} has no {{}}: write where the label goes, as in 'a photo of a {{}}.'"
                )
        sentences = [template.replace("{}", label) for label in labels for template in templates]
        parts = self.encode_text(sentences).reshape(len(labels), len(templates), -1)
        mean = parts.mean(axis=1)
        mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
        logits = self._logits(self.encode_image(images), mean)
        return np.asarray(self._programs.probabilities(logits))

    @functools.cached_property
    def _programs(self) -> "_Programs":
        return _compile(self.module, self.preprocess)

    def _read(self, image: Picture, number: int) -> np.ndarray:
        try:
            return self.preprocess(image)
        except BrokenSample as error:
            which = f"image {number}" if isinstance(image, (Image.Image, np.ndarray)) else os.fspath(image)
            raise BrokenSample(f"{which}: {error}") from error

    def _logits(self, images: np.ndarray, texts: np.ndarray) -> Float32[np.ndarray, "n_images n_texts"]:
        return np.asarray(self._programs.logits(self.params, images, texts))

    def _batched(
        self, encode: Callable, rows: Callable, count: int, shape: tuple[int, ...], dtype, batch_size: int
    ) -> Float32[np.ndarray, "n dim"]:
        """`encode` over `rows(start, stop)` for `count` rows, in batches of one size that all devices share.

        A call with few rows takes the next power of two instead of a whole batch, so that one picture on a laptop
        does not cost a batch of them; there are only a handful of such sizes to compile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be at least 1")
        mesh: Mesh = jax.tree.leaves(self.params)[0].sharding.mesh
        size = min(batch_size, 1 << max(count - 1, 0).bit_length())
        size = -(-size // mesh.size) * mesh.size
        if not count:
            return np.zeros(
                (0, jax.eval_shape(encode, self.params, jax.ShapeDtypeStruct((size, *shape), dtype)).shape[-1]),
                np.float32,
            )
        found = []
        for start in range(0, count, size):
            batch = np.zeros((size, *shape), dtype)
            part = rows(start, min(start + size, count))
            batch[: len(part)] = part
            # The call returns before the device is done: the next batch is decoded meanwhile.
            found.append(encode(self.params, jax.device_put(batch, NamedSharding(mesh, P("batch")))))
        return np.concatenate([np.asarray(x) for x in found])[:count]


class _Programs(NamedTuple):
    """The compiled functions of one model, kept with it and freed with it. Each compiles once for a size of batch."""

    encode_image: Callable  # (params, uint8 [n, size, size, 3]) -> float32 [n, dim] of unit norm
    encode_text: Callable  # (params, int32 [n, length]) -> float32 [n, dim] of unit norm
    logits: Callable  # (params, float32 [n, dim], float32 [m, dim]) -> float32 [n, m]
    probabilities: Callable  # float32 [n, m] -> float32 [n, m]


def _compile(module: model_lib.CLIP, preprocess: Preprocess) -> _Programs:
    def encode_image(params, images):
        pixels = normalize(images, preprocess.mean, preprocess.std)
        return module.apply({"params": params}, pixels, method="encode_image")

    def encode_text(params, ids):
        return module.apply({"params": params}, ids, method="encode_text")

    def logits(params, images, texts):
        scale, bias = module.apply({"params": params}, method="scale_and_bias")
        # Cosines are small numbers that a scale of up to 100 magnifies: full precision, also where the default is lower.
        return scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST) + bias

    sigmoid = module.init_logit_bias is not None
    probabilities = jax.nn.sigmoid if sigmoid else jax.nn.softmax
    return _Programs(*map(jax.jit, (encode_image, encode_text, logits, probabilities)))


def _refuse_single(values, what: str, kinds) -> None:
    """A single value where a list belongs would be taken apart letter by letter, or pixel row by pixel row."""
    if isinstance(values, kinds) or (isinstance(values, np.ndarray) and what == "images" and values.ndim == 3):
        raise TypeError(f"{what} must be a list, not one {type(values).__name__}: write [value]")


def _fingerprint(module: model_lib.CLIP, params, tokenizer: Tokenizer, preprocess: Preprocess) -> str:
    digest = hashlib.sha256()
    for tower in (module.vision, module.text):  # what the shapes of parameters do not tell
        digest.update(f"{tower.blocks['activation']} {tower.eps}\n".encode())
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(leaves):
        leaf = np.ascontiguousarray(leaves[path])
        digest.update(f"{path} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(leaf.view(np.uint8).data if leaf.ndim else leaf.tobytes())
    digest.update(tokenizer.fingerprint.encode())
    digest.update(preprocess.to_json().encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Run directories


def load(path: str | Path, step: int | None = None) -> Clip:
    """The model in a run directory: its newest checkpoint (or that of `step`), averaged weights where there are any.

    Raises LoadError that says what was found if `path` is no run directory of a CLIP, if it has no readable checkpoint,
    or if a file beside the weights (the tokenizer, the preprocessing) is not the one they were trained with.
    """
    directory = Path(path)
    if not directory.is_dir():
        what = "a file" if directory.is_file() else "no such folder"
        raise LoadError(f"{path}: {what}. {_RUN_DIRECTORY}")
    config = _config(directory)
    _check_artifacts(directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.json", config["model"]["text"]["context_length"])
    preprocess = Preprocess.from_json((directory / "preprocess.json").read_text("utf-8"))
    try:
        players, found_step = checkpoint.load_params(directory / "checkpoints", step)
    except (FileNotFoundError, checkpoint.CheckpointError) as error:
        raise LoadError(str(error)) from error
    try:
        module = model_lib.build(config["model"], tokenizer.vocab_size, tokenizer.eos_id)
    except (ValueError, AttributeError) as error:
        raise LoadError(f"{directory / 'config.json'} describes no model that can be built: {error}") from error
    _check_shapes(module, players[_PLAYER], directory)
    return Clip.assemble(module, players[_PLAYER], tokenizer, preprocess, f"{path} (step {found_step})")


def _config(directory: Path) -> dict:
    file = directory / "config.json"
    found = ", ".join(sorted(p.name for p in directory.iterdir())[:8]) or "nothing"
    if not file.is_file():
        raise LoadError(f"{directory} is no run directory: it holds {found}. {_RUN_DIRECTORY}")
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise LoadError(f"{file} is not JSON: {error}") from error
    task = config.get("task") if isinstance(config, dict) else None
    if task is None:
        raise LoadError(
            f"{directory} is no run directory: its config.json names no task, and it holds {found}. {_RUN_DIRECTORY}"
        )
    if task != "clip_jax.task":
        raise LoadError(f"{directory} is a run of {task!r}, not of a CLIP ('clip_jax.task')")
    return config


def _check_shapes(module: model_lib.CLIP, params, directory: Path) -> None:
    """The parameters must be those of the model that the config describes."""

    def shapes(tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    size = module.vision.size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, module.text.context_length), jnp.int32)
    described = shapes(nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images, ids)["params"]))
    saved = shapes(params)
    for path in sorted(described.keys() | saved.keys()):
        if described.get(path) != saved.get(path):
            raise LoadError(
                f"{directory}: the parameter {path} is {described.get(path, 'absent')} by config.json and "
                f"{saved.get(path, 'absent')} in the checkpoint; the weights were trained with another config.json"
            )


def _check_artifacts(directory: Path) -> None:
    """The files beside the weights must be those that the weights were trained with."""
    file = directory / "artifacts.json"
    try:
        expected = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read ({error}), so nothing says which tokenizer the weights need") from error
    for name in ("tokenizer.json", "preprocess.json"):
        if name not in expected:
            raise LoadError(f"{file} does not mention {name}: it holds {', '.join(expected) or 'nothing'}")
    for name, wanted in expected.items():
        if not (directory / name).is_file():
            raise LoadError(f"{directory / name} is missing: the weights need the file of SHA-256 {wanted[:12]}…")
        seen = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        if seen != wanted:
            kind = "tokenizer" if name == "tokenizer.json" else name
            raise LoadError(
                f"wrong {kind} for the weights: {directory / name} has SHA-256 {seen[:12]}…, and they were trained with "
                f"{wanted[:12]}…. Put the original file back, or train in another directory"
            )
