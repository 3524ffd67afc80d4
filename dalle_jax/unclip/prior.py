"""The prior for inference: samples CLIP image embeddings from texts. And its checkpoints, of runs and as one file."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt32

from clip_jax.clip import load as load_clip
from clip_jax.pretrained.checkpoint import check_shapes
from clip_jax.text import TextTower
from dalle_jax.unclip import prior_model
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.frozen_clip import CLIP
from dalle_jax.unclip.options import PriorModelOptions, PriorOptions
from dalle_jax.unclip.prior_model import PriorModel
from dalle_jax.unclip.prior_stage import PRIOR_STAGE, PriorStage, make_keys
from nn_jax.layers import DTYPES
from nn_jax.mixed_precision import round_weights
from train_jax import inference, run_directory
from train_jax.compute import TransformerCompute
from train_jax.data.text import AnyTokenizer
from train_jax.errors import LoadError
from train_jax.weights import single_file
from train_jax.weights.layout import flatten, unflatten
from vqgan_jax.pretrained.checkpoint import convert_errors

PRIOR = "prior.safetensors"  # in the run directory of a decoder
TASK = "dalle_jax.unclip.prior_task"
_KEY = "unclip_prior"


@dataclasses.dataclass(frozen=True)
class PriorCheckpoint:
    """Opened checkpoint of a prior whose weights are not read yet.

    Attributes:
      name: source, for messages.
      clip: fingerprint of the CLIP of the embeddings.
      diffusion: diffusion process of a diffusion prior.
      read: function that reads the parameters and the statistics of the model.
    """

    name: str
    options: PriorOptions
    diffusion: Diffusion
    clip: str
    compute: TransformerCompute
    read: Callable[[], tuple[dict, dict[str, np.ndarray]]]

    def build(self, dtype: str | None = None) -> PriorModel:
        """Builds the model for inference; `dtype` as in `load`."""
        compute = dataclasses.replace(self.compute, remat="none", float8=False, **({"dtype": dtype} if dtype else {}))
        return prior_model.build(self.options, self.diffusion, compute)

    def load(
        self,
        tower: TextTower,
        text_params: Any,
        tokenizer: AnyTokenizer,
        dtype: str | None,
        *,
        offload: bool = False,
    ) -> "Prior":
        """Loads the prior for the text tower of its CLIP. Raises LoadError for damaged or mismatched weights.

        Args:
          text_params: parameters of the tower, which may be on the devices already.
          dtype: precision; None: that of the training.
          offload: keep the weights in host memory; see `dalle_jax.load_unclip`.
        """
        model = self.build(dtype)
        params, statistics = self.read()
        check_shapes(params, prior_model.abstract_params(model, tower.options.text.width), self.name)
        check_shapes(statistics, prior_model.unit_statistics(model, self.options.embed_dim), self.name)
        params = round_weights(params, DTYPES[dtype or self.compute.dtype])
        variables = {"text": text_params, "prior": params, **statistics}
        stage = PriorStage(tower, model)
        return Prior(stage, inference.on_devices(variables, offload=offload), tokenizer, self.name)


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """A prior for inference.

    Attributes:
      variables: weights on the devices of this host; see `PriorStage`.
    """

    stage: PriorStage
    variables: Any
    tokenizer: AnyTokenizer
    name: str

    def draw(
        self,
        ids: np.ndarray,
        seeds: UInt32[np.ndarray, "b 3"],
        *,
        guidance: float = 1.0,
        steps: int = 25,
        candidates: int = 2,
        batch_size: int = 64,
    ) -> Float32[np.ndarray, "b dim"]:
        """Samples an image embedding, not normalised to unit length, for each row of token ids.

        Args:
          seeds: `make_seeds` of the texts.
          guidance, steps, candidates: see `PriorStage.draw`. More than one candidate costs as many samples.
        """
        null_ids = self.tokenizer.encode([""])[0]
        candidates = 1 if self.stage.model.is_deterministic else candidates
        table, scale = self.stage.model.make_steps(steps), np.float32(guidance)
        program = functools.partial(self.program, guided=guidance != 1, candidates=candidates)
        return inference.batched(
            lambda variables, rows: program(variables, rows, null_ids, table, scale),
            self.variables,
            lambda a, b: (ids[a:b], seeds[a:b]),
            len(ids),
            (jax.ShapeDtypeStruct(ids.shape[1:], np.int32), jax.ShapeDtypeStruct((3,), np.uint32)),
            batch_size,
        )

    @functools.cached_property
    def program(self) -> Callable:
        """The jitted sampling: `(variables, (ids, seeds), null_ids, steps, guidance, guided, candidates) -> embeddings`."""

        def draw(variables, rows, null_ids, steps, guidance, guided: bool, candidates: int):
            ids, seeds = rows
            keys = make_keys(seeds, PRIOR_STAGE)
            return self.stage.draw(
                variables, ids, null_ids, keys, steps, guidance, guided=guided, candidates=candidates
            )

        return jax.jit(draw, static_argnames=("guided", "candidates"))


def make_seeds(
    texts: Sequence[str], first: Sequence[int] | np.ndarray, n: int, seed: int
) -> UInt32[np.ndarray, "p n 3"]:
    """Makes rows `(seed, hash of the text, number of the sample)`: n samples of each text, numbered from `first`."""
    rows = np.empty((len(texts), n, 3), np.uint32)
    rows[..., 0] = seed
    rows[..., 1] = np.array([zlib.crc32(text.encode("utf-8", "replace")) for text in texts], np.uint32)[:, None]
    rows[..., 2] = np.asarray(first)[:, None] + np.arange(n)
    return rows


def to_bytes(checkpoint: PriorCheckpoint) -> bytes:
    """Serialises a prior as the content of a `.safetensors` file that `open_checkpoint` opens."""
    params, statistics = checkpoint.read()
    description = {
        "model": checkpoint.options.to_dict(),
        "diffusion": checkpoint.diffusion.to_dict(),
        "clip": checkpoint.clip,
        "compute": checkpoint.compute.to_dict(),
    }
    arrays = {f"statistics/{name}": x for name, x in statistics.items()}
    return single_file.to_bytes(_KEY, description, flatten({"params": params}) | arrays)


def open_checkpoint(path: str | Path, step: int | None = None) -> PriorCheckpoint:
    """Opens the prior in a run directory, or in a file of `to_bytes`. Raises LoadError for anything else."""
    path = Path(path)
    checkpoint = _open_run(path, step) if path.is_dir() else _open_file(path) if path.is_file() else None
    if checkpoint is None:
        raise LoadError(f"{path} is no prior: name a run directory of the task {TASK}, or its file {PRIOR}")
    return checkpoint


def _open_run(path: Path, step: int | None) -> PriorCheckpoint | None:
    config = run_directory.open_config(path, TASK, "a prior of unCLIP", (CLIP,))
    if config is None:
        return None
    clip = load_clip(path / CLIP, dtype=None)

    def read() -> tuple[dict, dict[str, np.ndarray]]:
        params, extra, _ = run_directory.load_weights(path, step)
        statistics = {name: np.asarray(x) for name, x in extra.items() if name != "text"}
        return jax.tree.map(np.asarray, params["prior"]), statistics

    with convert_errors(path):
        model = PriorModelOptions.parse(config["model"], "model")
        return PriorCheckpoint(
            name=str(path),
            options=complete_options(model, clip.module.options),
            diffusion=Diffusion.parse(config["diffusion"], "diffusion"),
            clip=clip.fingerprint,
            compute=TransformerCompute.parse(config["compute"], "compute"),
            read=read,
        )


def _open_file(path: Path) -> PriorCheckpoint | None:
    opened = single_file.open_file(path, _KEY)
    if opened is None:
        return None
    description, read_arrays = opened
    with convert_errors(path):
        compute = TransformerCompute.parse(description["compute"], "compute")
        options = PriorOptions.parse(description["model"], "model")
        diffusion = Diffusion.parse(description["diffusion"], "diffusion")
        clip = description["clip"]

    def read() -> tuple[dict, dict[str, np.ndarray]]:
        trees = unflatten(read_arrays(), compute.scan)
        return trees["params"], trees["statistics"]

    return PriorCheckpoint(str(path), options, diffusion, clip, compute, read)


def complete_options(model: PriorModelOptions, clip: Any) -> PriorOptions:
    """Completes the options of a prior with those of its CLIP, `clip_jax.options.CLIPOptions`.

    Raises ConfigError for more components than the embeddings have.
    """
    values: Mapping[str, Any] = model.to_dict()
    options = PriorOptions(**values, embed_dim=clip.embed_dim, text_length=clip.text.context_length)
    options.check("model")
    return options
