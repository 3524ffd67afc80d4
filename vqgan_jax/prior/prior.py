"""The loaded second stage: a small value that draws images of a class, of any size, and tells how likely images are."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from nn_jax.decode import Sampling
from train_jax import inference, run_directory
from train_jax.errors import ConfigError, LoadError
from train_jax.weights import hub
from vqgan_jax.pretrained.checkpoint import describing
from vqgan_jax.pretrained.taming import find_file
from vqgan_jax.prior import model as model_lib
from vqgan_jax.prior import sampling, taming
from vqgan_jax.prior.task import TOKENIZER
from vqgan_jax.vqgan import Pictures, Vqgan
from vqgan_jax.vqgan import load as load_vqgan
from vqgan_jax.vqgan import options as vqgan_options


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """A second stage ready for use, with the tokenizer whose codes it knows. Make one with `load`, or with `assemble`.

    Attributes:
      module: see `vqgan_jax.prior.model`.
      variables: on this host's devices.
      vqgan: turns codes into pictures.
      size: side of the pictures it was trained on.
      name: where it came from, for people.
      label_free: whether it also knows images without a label, as guidance needs.
    """

    module: model_lib.CodeTransformer
    variables: Any
    vqgan: Vqgan
    size: int
    name: str
    label_free: bool = True

    @classmethod
    def assemble(
        cls, options: ConfigDict, params: Mapping, vqgan: Vqgan, size: int, name: str, label_free: bool = True
    ) -> "Prior":
        """The model of these options and weights; LoadError if they do not belong together."""
        side = size // vqgan.factor
        try:
            module = model_lib.build(options, vqgan.codes, side * side)
        except ConfigError as error:
            raise LoadError(f"{name} describes no model that can be built: {error}") from error
        wanted, found = model_lib.shapes(module), jax.tree.map(np.shape, params, is_leaf=lambda x: hasattr(x, "shape"))
        if wanted != found:
            raise LoadError(f"{name}: weights and configuration belong to different models")
        return cls(module, inference.on_devices(params), vqgan, size, name, label_free)

    @property
    def classes(self) -> int:
        """How many classes it knows; 0: it knows none."""
        return self.module.classes

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of the codes it was trained on."""
        return (self.size // self.vqgan.factor,) * 2

    def sample(self, n: int = 1, labels: Sequence[int] | int | None = None, **options) -> UInt8[np.ndarray, "n H W 3"]:
        """New pictures. Arguments as in `sample_codes`."""
        return self.vqgan.decode_uint8(self.sample_codes(n, labels, **options))

    def sample_codes(
        self,
        n: int = 1,
        labels: Sequence[int] | int | None = None,
        *,
        seed: int = 0,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        guidance: float | int = 1.0,
        size: tuple[int, int] | None = None,
        stride: int | None = None,
        init_image: Pictures | None = None,
        keep: np.ndarray | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Int32[np.ndarray, "n h w"]:
        """Codes of new pictures.

        Args:
          n: how many.
          labels: one for all, or one each; None: of no class.
          seed: picture i of a seed is the same whatever `n` and `batch_size` are.
          temperature, top_k, top_p, guidance: see `nn_jax.decode.Sampling`; guidance goes beyond the class.
          size: (height, width) in pixels, at least those it was trained on; larger ones by a sliding window.
          stride: codes between two windows; 1 gives every code the most to look at, None is half a window.
          init_image, keep: one picture of this size, and bool [h, w]: the codes of it that are to stay.
          progress: show a bar, one step a window and batch.

        Raises ValueError for arguments that cannot be.
        """
        asked = self._labels(n, labels)
        self._check(temperature, top_k, top_p, guidance)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed = {seed} must be in [0, 2^32)")
        grid = self._grid(size)
        stride = max(self.window[0] // 2, 1) if stride is None else stride
        if not 1 <= stride <= min(self.window):
            raise ValueError(f"stride = {stride} must be in [1, {min(self.window)}], the side of a window in codes")
        given = self._given(n, grid, init_image, keep)
        settings = Sampling(np.float32(temperature), np.int32(top_k or 0), np.float32(top_p or 1), np.float32(guidance))
        most = top_k or (self.module.size if top_p is not None and top_p < 1 else 0)
        variables = (self.variables, inference.on_devices(settings))
        seeds = np.stack([np.full(n, seed), np.arange(n)], axis=1).astype(np.uint32)
        total = len(list(sampling.windows(grid, self.window, stride)))

        def sample(before, kept, hold, places):
            rows = sampling.Rows(seeds, asked, before, kept, hold)
            row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)

            def program(variables, rows):
                return self._program(*variables, rows, places, most=most, guided=guidance != 1)

            codes = inference.batched(
                program, variables, lambda a, b: jax.tree.map(lambda x: x[a:b], rows), n, row, batch_size
            )
            bar.update()
            return codes

        with tqdm(total=total, unit="window", disable=not progress) as bar:
            return sampling.sample_windows(sample, n, grid, self.window, stride, *given)

    def log_likelihood(
        self, images: Pictures, labels: Sequence[int] | int | None = None, batch_size: int = 32
    ) -> Float32[np.ndarray, "n"]:
        """Natural logarithm of each picture's codes' probability; pictures have the size it was trained on."""
        codes = self.vqgan.encode(images)
        if codes.shape[1:] != self.window:
            raise ValueError(f"pictures of {codes.shape[1:]} codes; the model knows {self.window}")
        rows = (codes, self._labels(len(codes), labels))
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
        return inference.batched(
            self._scores, self.variables, lambda a, b: jax.tree.map(lambda x: x[a:b], rows), len(codes), row, batch_size
        )

    @functools.cached_property
    def _program(self) -> Callable:
        return jax.jit(sampling.program(self.module), static_argnames=("most", "guided"))

    @functools.cached_property
    def _scores(self) -> Callable:
        def score(params, rows):
            codes, labels = rows
            codes = codes.reshape(len(codes), -1)
            log_probs = jax.nn.log_softmax(self.module.apply({"params": params}, codes, labels))
            return jnp.take_along_axis(log_probs, codes[..., None], axis=2).sum(axis=(1, 2))

        return jax.jit(score)

    def _labels(self, n: int, labels) -> Int32[np.ndarray, "n"]:
        if n < 1:
            raise ValueError(f"n = {n} must be at least 1")
        if labels is None and not self.label_free:
            raise ValueError(f"{self.name} knows no image without a label; name `labels`, 0 to {self.classes - 1}")
        if labels is None:
            return np.full(n, -1, np.int32)
        if not self.classes:
            raise ValueError(f"{self.name} was trained without labels; leave `labels` out")
        found = (
            np.broadcast_to(np.asarray(labels, np.int32), (n,))
            if np.ndim(labels) == 0
            else np.asarray(labels, np.int32)
        )
        if found.shape != (n,):
            raise ValueError(f"{len(found)} labels for {n} pictures: give one for all, or one each")
        if found.min() < 0 or found.max() >= self.classes:
            raise ValueError(f"labels {found.min()} to {found.max()}: this model knows 0 to {self.classes - 1}")
        return found

    def _check(self, temperature, top_k, top_p, guidance) -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature = {temperature} must be 0 or more")
        if top_k is not None and not 1 <= top_k <= self.module.size:
            raise ValueError(f"top_k = {top_k} must be in [1, {self.module.size}], or None for all codes")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p = {top_p} must be in (0, 1], or None for all codes")
        if guidance != 1 and not self.label_free:
            raise ValueError(
                f"guidance = {guidance}: {self.name} was never shown images without their label, so there is nothing to go "
                "beyond. Leave guidance at 1, or train with label_dropout above 0"
            )
        if guidance != 1 and not self.classes:
            raise ValueError(
                f"guidance = {guidance}: {self.name} was trained without labels, so there is nothing to guide"
            )

    def _grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            return self.window
        if any(side < self.size or side % self.vqgan.factor for side in size):
            raise ValueError(
                f"size = {tuple(size)}: height and width must be at least {self.size}, the size it was trained on, and "
                f"divisible by {self.vqgan.factor}"
            )
        return size[0] // self.vqgan.factor, size[1] // self.vqgan.factor

    def _given(self, n: int, grid: tuple[int, int], init_image, keep):
        if init_image is None and keep is None:
            return None, None
        if init_image is None or keep is None:
            raise ValueError("init_image and keep belong together: the picture, and which of its codes stay")
        codes, keep = self.vqgan.encode(init_image), np.asarray(keep, bool)
        if codes.shape != (1, *grid) or keep.shape != grid:
            raise ValueError(
                f"init_image has codes {list(codes.shape)} and keep is {list(keep.shape)}; one picture of {list(grid)} "
                "codes is to be made"
            )
        return np.repeat(codes, n, axis=0), keep


def load(path: str | Path, step: int | None = None) -> Prior:
    """A second stage, with its tokenizer.

    Args:
      path: a run directory (averaged weights where there are any), taming-transformers' `.ckpt` of a second stage with its
        `.yaml` beside it (or a folder of one), or "hf:org/name" for a repository that holds these.
      step: of a run directory, the checkpoint; None for the newest readable one.

    Raises LoadError that says what was found if it is none, is damaged, or does not belong together.
    """
    path = hub.resolve(path, ("*.ckpt", "*.yaml", "*.yml"))
    if file := path if path.is_file() else find_file(path):
        return _load_taming(file)
    config = run_directory.open_config(path, "vqgan_jax.prior.task", "a second stage", (TOKENIZER,))
    if config is None:
        raise LoadError(f"{path} is no run directory: it has no config.json with a task")
    params, _, name = run_directory.load_weights(path, step)
    vqgan = load_vqgan(path / TOKENIZER)
    options = model_lib.defaults()
    with describing(path):
        options.update(config["model"])
        size = config["vqgan"]["size"] or vqgan.size
        label_free = not options.classes or config["label_dropout"] > 0
        params = jax.tree.map(np.asarray, params["prior"])
    return Prior.assemble(options, params, vqgan, size, name, label_free)


def _load_taming(path: Path) -> Prior:
    found = taming.open_file(path)
    if found is None:
        raise LoadError(f"{path} is no second stage: neither a run directory nor taming's Net2NetTransformer")
    given, params, first = found
    variables, name = first.variables(first.module())
    vq_options = vqgan_options(first.model)
    options = model_lib.defaults()
    options.update(given)
    vqgan = Vqgan.assemble(vq_options, variables, name)
    side = round(len(params["positions"]) ** 0.5)
    if side * side != len(params["positions"]):
        raise LoadError(f"{path}: {len(params['positions'])} positions are no square of codes")
    return Prior.assemble(options, params, vqgan, side * vqgan.factor, str(path), label_free=not options.classes)
