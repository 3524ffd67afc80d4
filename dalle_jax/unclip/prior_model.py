"""The priors of unCLIP (arXiv 2204.06125, section 2.2): what each learns and how it is sampled, as pure functions.

    model = build(options, diffusion, compute)
    statistics = model.measure(mean, covariance)                  of CLIP's image embeddings; they are not trained
    x = model.encode(statistics, embeddings, text.embedding)      what the network models
    loss, metrics = model.loss(params, x, text, rng)
    x = model.sample(params, text, null, keys, model.make_steps(25), guidance)
    embeddings = model.restore(statistics, x)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32

from dalle_jax.unclip import diffusion as diffusion_lib
from dalle_jax.unclip import samplers
from dalle_jax.unclip.autoregressive_prior import AutoregressivePrior
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.options import PriorOptions
from dalle_jax.unclip.prior_networks import (
    EmbeddingStatistics,
    LinearMap,
    PriorTransformer,
    make_inputs,
    standard_deviations,
)
from dalle_jax.unclip.samplers import Predict, Steps, draw_noise, guide, interleave, make_ancestral_update
from dalle_jax.unclip.text_features import TextFeatures
from train_jax.compute import TransformerCompute
from train_jax.profiling import dense_flops, transformer_flops


@runtime_checkable
class PriorModel(Protocol):
    """Interface of priors.

    Attributes:
      timesteps: number of timesteps of its diffusion, which bounds the number of sampling steps; None: it has no steps.
      is_deterministic: whether the same text always has the same embedding.
    """

    @property
    def timesteps(self) -> int | None:
        """Number of timesteps of training; None: the prior is no diffusion model."""

    @property
    def is_deterministic(self) -> bool:
        """Whether all samples of a text are equal."""

    def init(self, rng: jax.Array, text_width: int) -> Any:
        """Initialises the parameters, for a text tower of this width."""

    def measure(
        self, mean: Float32[np.ndarray, "dim"], covariance: Float32[np.ndarray, "dim dim"]
    ) -> dict[str, np.ndarray]:
        """Computes the statistics of image embeddings: `mean` and `std` [dim], and what else the prior needs."""

    def encode(
        self, statistics: Mapping[str, Any], embeddings: Float[Array, "b dim"], text_embedding: Float[Array, "b dim"]
    ) -> Array:
        """Converts embeddings of images to what the network models; `restore` converts back."""

    def restore(self, statistics: Mapping[str, Any], x: Array) -> Float32[Array, "b dim"]:
        """Converts samples to embeddings in CLIP's units."""

    def loss(self, params: Any, x: Array, text: TextFeatures, rng: jax.Array) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Computes the training loss and metrics, means over the examples, of which some have the empty text."""

    def make_steps(self, count: int) -> Steps | None:
        """Makes the table of sampling steps; None: it has no steps. Raises ValueError for another count than allowed."""

    def sample(
        self,
        params: Any,
        text: TextFeatures,
        null: TextFeatures | None,
        keys: jax.Array,
        steps: Steps | None,
        guidance: ArrayLike,
    ) -> Array:
        """Samples what `encode` returns, for each of the random keys [b * n]: n consecutive ones for each of b texts.

        Args:
          null: the empty text, one row; None: no guidance.
          guidance: scale of classifier-free guidance.
        """

    def flops(self, text_width: int) -> int:
        """Counts the FLOPs of the forward pass for one example."""


@dataclasses.dataclass(frozen=True)
class _StandardizedPrior:
    """Prior of standardised embeddings, which a network predicts."""

    network: PriorTransformer | LinearMap

    def init(self, rng: jax.Array, text_width: int) -> Any:
        return self.network.init(rng, *make_inputs(self.network.options, text_width))["params"]

    def measure(
        self, mean: Float32[np.ndarray, "dim"], covariance: Float32[np.ndarray, "dim dim"]
    ) -> dict[str, np.ndarray]:
        return {"mean": mean, "std": standard_deviations(np.diag(covariance))}

    def encode(self, statistics, embeddings, text_embedding):
        return EmbeddingStatistics(statistics["mean"], statistics["std"]).standardize(embeddings)

    def restore(self, statistics, x):
        return EmbeddingStatistics(statistics["mean"], statistics["std"]).restore(x)

    def flops(self, text_width: int) -> int:
        options = self.network.options
        dim, width = options.embed_dim, options.width
        if isinstance(self.network, LinearMap):
            return dense_flops(1, dim, dim)
        flops = transformer_flops(options.length, width, options.depth)
        flops += dense_flops(options.text_length, text_width, width) + 3 * dense_flops(1, dim, width)
        return flops + 2 * dense_flops(1, width, width) * options.time_token

    def _draw_noise(self, keys: jax.Array, t: int) -> Float32[Array, "b dim"]:
        return draw_noise(keys, t, (self.network.options.embed_dim,))

    def _make_predict(self, params, text: TextFeatures, null: TextFeatures | None, count: int, guidance) -> Predict:
        """Makes the guided prediction of `count` rows."""
        rows = jax.tree.map(lambda x: jnp.repeat(x, count // len(x), axis=0), text)
        if null is not None:
            rows = interleave(rows, jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), null, rows))

        def predict(x, t):
            return self.network.apply({"params": params}, x, t, *rows)

        return predict if null is None else guide(predict, guidance)


@dataclasses.dataclass(frozen=True)
class DiffusionPrior(_StandardizedPrior):
    """Diffusion model of standardised embeddings."""

    diffusion: Diffusion

    is_deterministic = False

    @property
    def timesteps(self) -> int | None:
        """Number of timesteps of training."""
        return self.diffusion.timesteps

    def loss(self, params, x, text, rng):
        """Computes the mean squared error of the prediction at a random timestep, and metrics."""
        t_key, noise_key, dropout_key = jax.random.split(rng, 3)
        t = jax.random.randint(t_key, (len(x),), 0, self.diffusion.timesteps)
        noise = jax.random.normal(noise_key, x.shape)
        noised = diffusion_lib.add_noise(self.diffusion, x, noise, t)
        output = self.network.apply({"params": params}, noised, t, *text, False, rngs={"dropout": dropout_key})
        mse = jnp.mean(diffusion_lib.losses(self.diffusion, output, x, noise, t)["mse"])
        return mse, {"mse": mse}

    def make_steps(self, count: int) -> Steps | None:
        """Makes the table of `count` sampling steps. Raises ValueError for a count that is not possible."""
        return samplers.make_steps(self.diffusion, count)

    def sample(self, params, text, null, keys, steps, guidance):
        """Samples standardised embeddings by ancestral sampling."""
        predict = self._make_predict(params, text, null, len(keys), guidance)
        noise = self._draw_noise(keys, self.diffusion.timesteps)
        return samplers.sample(predict, noise, keys, steps, make_ancestral_update(self.diffusion))


@dataclasses.dataclass(frozen=True)
class OneStepPrior(_StandardizedPrior):
    """Prediction of standardised embeddings from noise in one step: ECLIPSE (arXiv 2312.04655), and the linear baseline."""

    timesteps = None

    @property
    def is_deterministic(self) -> bool:
        """Whether the network is linear, which reads no noise."""
        return isinstance(self.network, LinearMap)

    def loss(self, params, x, text, rng):
        """Computes the loss of one step from noise, and metrics."""
        noise_key, dropout_key = jax.random.split(rng)
        inputs = jax.random.normal(noise_key, x.shape), jnp.zeros(len(x), jnp.int32)
        output = self.network.apply({"params": params}, *inputs, *text, False, rngs={"dropout": dropout_key})
        mse = jnp.mean(jnp.square(output - x))
        return mse, {"mse": mse}

    def make_steps(self, count: int) -> Steps | None:
        """Returns None: there is one step."""
        del count
        return None

    def sample(self, params, text, null, keys, steps, guidance):
        """Predicts standardised embeddings from noise."""
        predict = self._make_predict(params, text, null, len(keys), guidance)
        return predict(self._draw_noise(keys, 0), jnp.zeros(len(keys), jnp.int32))


def build(
    options: PriorOptions, diffusion: Diffusion, compute: TransformerCompute, dropout: float = 0.0
) -> DiffusionPrior | OneStepPrior | AutoregressivePrior:
    """Builds the prior of the type that the options name; `diffusion` is that of a diffusion prior.

    Args:
      dropout: dropout rate in the blocks during training.
    """
    if options.type == "autoregressive":
        return AutoregressivePrior.build(options, compute, dropout)
    if options.type == "linear":
        return OneStepPrior(LinearMap(options))
    network = PriorTransformer(options, compute, dropout)
    return DiffusionPrior(network, diffusion) if options.time_token else OneStepPrior(network)


def unit_statistics(model: PriorModel, dim: int) -> dict[str, np.ndarray]:
    """Computes the statistics of embeddings of mean 0 and covariance 1, whose shapes are those of any."""
    return model.measure(np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32))


def abstract_params(model: PriorModel, text_width: int) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters of a prior, without Flax's metadata boxes."""
    return nn.unbox(jax.eval_shape(lambda rng: model.init(rng, text_width), jax.random.key(0)))
