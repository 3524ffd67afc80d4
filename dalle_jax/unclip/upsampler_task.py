"""Training task of an upsampler of unCLIP (arXiv 2204.06125, section 2.1), a diffusion model of images given small ones.

Batches: `image` uint8 [B, size, size, 3]. The small image is made in the step: reduced by bicubic interpolation, blurred at
random, and enlarged again. Since the network is convolutional, it is trained on crops (`augment.scale`), and
upsamples whole images.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32
from ml_collections import ConfigDict

from dalle_jax import card
from dalle_jax.unclip import diffusion as diffusion_lib
from dalle_jax.unclip.decoder_stage import to_signed, to_uint8
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.example import ImageExample
from dalle_jax.unclip.flops import unet_flops
from dalle_jax.unclip.options import UNetOptions
from dalle_jax.unclip.prior import make_seeds
from dalle_jax.unclip.prior_evaluators import check_steps
from dalle_jax.unclip.prior_stage import UPSAMPLER_STAGE, make_keys
from dalle_jax.unclip.samplers import make_steps
from dalle_jax.unclip.unet import UNet
from dalle_jax.unclip.upsampler_stage import UpsamplerStage, resize
from train_jax import inference
from train_jax.compute import Compute
from train_jax.config import EvaluatorOptions
from train_jax.data import images
from train_jax.data.images import Preprocess
from train_jax.data.options import AugmentOptions
from train_jax.data.subset import first
from train_jax.options import Options, option
from train_jax.pictures import image_grid
from train_jax.placeholders import make_record
from train_jax.profiling import BACKWARD
from train_jax.task import Task

_BLUR_SIGMA = 0.6  # of a Gaussian kernel of 3 x 3 pixels, section 2.1
_MAX_SHOWN = 16  # columns of a grid


@dataclasses.dataclass(frozen=True)
class UpsamplerTaskOptions(Options):
    """Options of the upsampler's task. `model.size` is the side of the training images, or crops."""

    model: UNetOptions = UNetOptions()
    factor: int = option(4, "number of times that an image is enlarged", least=2)
    diffusion: Diffusion = Diffusion()
    augment: AugmentOptions = AugmentOptions()
    compute: Compute = Compute()
    blur: float = option(0.5, "probability of blurring the small image", least=0, most=1)
    min_snr: float = option(
        0.0, "clipping of the loss weight by the signal-to-noise ratio (arXiv 2303.09556); 0: none", least=0
    )
    dropout: float = option(0.0, "dropout rate in residual blocks", least=0, below=1)

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide what the weights mean."""
        return {"model": self.model.identity(), "factor": self.factor, "diffusion": self.diffusion.identity()}

    def check(self, path: str) -> None:
        """Raises ConfigError for values that exclude each other; `path` is where the options are in the config."""
        self.require(self.model.size % self.factor == 0, path, "factor", f"a divisor of model.size = {self.model.size}")


@dataclasses.dataclass(frozen=True)
class UpsamplingOptions(EvaluatorOptions):
    """Options of the evaluator of enlarged images."""

    steps: int = option(25, "number of sampling steps", least=2)
    seed: int = option(0, "random seed", least=0, below=2**32)
    examples: int = option(64, "number of records; 0: all", least=0)


OPTIONS, EVALUATORS, CARD = UpsamplerTaskOptions, {"upsampling": UpsamplingOptions}, card.UPSAMPLER


def write_placeholders(config: ConfigDict, folder: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns the config, which names no files, and a record; see `train_jax.task`."""
    return config, make_record()


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """Makes the task of a resolved config. Raises ConfigError for invalid options."""
    options = UNetOptions.parse(config.model, "model")
    diffusion = Diffusion.parse(config.diffusion, "diffusion")
    unet = UNet(options, output_channels(diffusion), Compute.parse(config.compute, "compute"))
    training_unet = unet.clone(dropout=config.dropout)
    preprocess = images.Preprocess(options.size)
    augment = AugmentOptions.parse(config.augment, "augment").make(preprocess)
    stage = UpsamplerStage(unet, diffusion, options.size)

    def init(rng, batch):
        x = jnp.zeros((1, options.size, options.size, 6))
        return {"upsampler": unet.init(rng, x, jnp.zeros(1, jnp.int32))["params"]}, {}

    def loss(params, extra, batch, rng, step):
        blur_key, t_key, noise_key, dropout_key = jax.random.split(rng, 4)
        x0 = to_signed(batch["image"])
        small = reduce(x0, config.factor, jax.random.bernoulli(blur_key, config.blur, (len(x0),)))
        t = jax.random.randint(t_key, (len(x0),), 0, diffusion.timesteps)
        noise = jax.random.normal(noise_key, x0.shape)
        x = diffusion_lib.add_noise(diffusion, x0, noise, t)
        x = jnp.concatenate([x, resize(small, options.size)], axis=-1)
        output = training_unet.apply({"params": params["upsampler"]}, x, t, None, False, rngs={"dropout": dropout_key})
        terms = diffusion_lib.losses(diffusion, output, x0, noise, t, config.min_snr or None)
        metrics = {name: jnp.mean(term) for name, term in terms.items()}
        return sum(metrics.values()), (metrics, {})

    def make_evaluator(evaluator_options: ConfigDict, context):
        return Upsampling(stage, config.factor, preprocess, evaluator_options, context)

    return Task(
        init=init,
        loss=loss,
        example=ImageExample(augment),
        evaluators={"upsampling": make_evaluator},
        mean_over_examples=True,
        flops=float(BACKWARD * unet_flops(options, unet.out_channels, 6)),
    )


def reduce(
    pixels: Float32[Array, "b h w c"], factor: int, is_blurred: Bool[Array, "b"]
) -> Float32[Array, "b h2 w2 c"]:
    """Reduces images by bicubic interpolation, and blurs some of the results."""
    small = resize(pixels, pixels.shape[1] // factor)
    weights = np.exp(-0.5 * (np.arange(-1, 2) / _BLUR_SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    blurred = small
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded, side = jnp.pad(blurred, padding, mode="edge"), small.shape[axis]
        blurred = sum(w * jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i, w in enumerate(weights))
    return jnp.where(is_blurred[:, None, None, None], blurred, small)


class Upsampling:
    """PSNR in dB of enlarged images against their originals, and of bicubic interpolation beside it."""

    def __init__(self, stage: UpsamplerStage, factor: int, preprocess: Preprocess, options: ConfigDict, context):
        check_steps(stage.diffusion.timesteps, options.steps)
        table, self._context, self._options = make_steps(stage.diffusion, options.steps), context, options
        self._records, self._preprocess = first(context.source_of(options), options.examples), preprocess

        def upsample(params, extra, batch):
            originals = to_signed(batch["image"])
            small = reduce(originals, factor, jnp.zeros(len(originals), bool))
            large = stage.draw(params, small, make_keys(batch["seeds"], UPSAMPLER_STAGE), table)
            bicubic = jnp.clip(resize(small, stage.size), -1, 1)
            errors = {"psnr": large, "bicubic_psnr": bicubic}
            errors = {name: jnp.mean(jnp.square(x - originals) / 4, axis=(1, 2, 3)) for name, x in errors.items()}
            return errors, to_uint8(bicubic), to_uint8(large)

        self._program = context.jit(upsample)

    def __call__(self, params, extra) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns PSNRs in dB, and a sheet of small, bicubic, enlarged and original images."""
        indices = range(len(self._records))
        batches = self._context.batches(indices, self._make_example, self._options.batch_size)
        errors: dict[str, list[np.ndarray]] = {}
        rows: list[np.ndarray] = []
        outputs = ((self._program(params, extra, batch), real) for batch, real in batches)
        for (values, *shown), real in inference.fetch_overlapped(outputs):
            for name, x in values.items():
                errors.setdefault(name, []).append(x[:real])
            rows = rows or [x[: min(real, _MAX_SHOWN)] for x in shown]
        metrics = {
            name: float(np.mean(-10 * np.log10(np.maximum(np.concatenate(parts), 1e-10)))) for name, parts in errors.items()
        }
        return metrics | {"images": len(indices)}, {"upsampled": image_grid([list(row) for row in rows])}

    def _make_example(self, index: int, rng) -> dict[str, np.ndarray]:
        image = self._preprocess(self._records[index]["image"])
        return {"image": image, "seeds": make_seeds([""], [index], 1, self._options.seed)[0, 0]}
