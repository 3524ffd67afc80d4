"""Networks that predict CLIP image embeddings from text (arXiv 2204.06125, section 2.2).

The sequence of the transformer is [text tokens, text embedding, timestep, noised image embedding, final token]; the answer
is read at the final token. Image embeddings are standardised: zero mean and unit variance of each component
(`EmbeddingStatistics`).
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from dalle_jax.unclip.options import PriorOptions
from dalle_jax.unclip.timestep import TimeEmbedding
from nn_jax.layers import Dense, add_parameter, l2_normalize, layer_norm, with_axis_names
from nn_jax.transformer import Transformer
from train_jax.compute import TransformerCompute

_EPS = 1e-5


@flax.struct.dataclass
class EmbeddingStatistics:
    """Mean and standard deviation of each component of CLIP's image embeddings over a data set. They are not trained."""

    mean: Float32[Array, "dim"]
    std: Float32[Array, "dim"]

    def standardize(self, embeddings: Float[Array, "b dim"]) -> Float[Array, "b dim"]:
        """Converts embeddings of CLIP to the units of the prior."""
        return (embeddings - self.mean[None]) / self.std[None]

    def restore(self, standardized: Float[Array, "b dim"]) -> Float[Array, "b dim"]:
        """Converts samples of the prior to embeddings of CLIP: the inverse of `standardize`."""
        return standardized * self.std[None] + self.mean[None]


def standard_deviations(variances: Float[np.ndarray, "n"]) -> Float32[np.ndarray, "n"]:
    """Computes the standard deviations by which components are divided: those of variance 0 by 1."""
    # A component that never changes is standardised to 0, whatever it is divided by.
    return np.where(variances > 0, np.sqrt(np.maximum(variances, 0)), 1).astype(np.float32)


class LinearMap(nn.Module):
    """Affine map from the direction of the text embedding to the image embedding: the baseline of other priors.

    It has the interface of `PriorTransformer`, and depends only on `text_embedding`.
    """

    options: PriorOptions

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b dim"],
        t: Int[Array, "b"] | None,
        text_embedding: Float[Array, "b dim"],
        text_states: Float[Array, "b n text_width"],
        text_mask: Bool[Array, "b n"],
        deterministic: bool = True,
    ) -> Float32[Array, "b dim"]:
        """Predicts the standardised image embedding."""
        dim = self.options.embed_dim
        direction = l2_normalize(text_embedding) * dim**0.5  # components of about 1: one learning rate fits all CLIPs
        return Dense((dim,), ("proj", "embed"), 0.0, jnp.float32, name="head")(direction)


class PriorTransformer(nn.Module):
    """Transformer over a text and a noised image embedding, which predicts the image embedding.

    Attention is causal, and padding of the text is hidden from all tokens. Without a timestep (`PriorOptions.time_token`)
    it predicts the embedding from noise, in one step.

    Attributes:
      dropout: dropout rate in the blocks during training.
    """

    options: PriorOptions
    compute: TransformerCompute = TransformerCompute()
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b dim"],
        t: Int[Array, "b"] | None,
        text_embedding: Float[Array, "b dim"],
        text_states: Float[Array, "b n text_width"],
        text_mask: Bool[Array, "b n"],
        deterministic: bool = True,
    ) -> Float32[Array, "b dim"]:
        """Predicts the standardised image embedding.

        Args:
          x: noised standardised image embedding at timestep `t`; noise for a prior without a timestep, which ignores `t`.
          text_embedding: CLIP's embedding of the text, not normalised to unit length.
          text_states: output of CLIP's text tower for each token, after its last layer norm.
          text_mask: True from the begin token to the end token.
        """
        options, dtype = self.options, self.compute.array_dtype
        width = options.width

        def project(value, name: str):
            return Dense((width,), ("proj", "embed"), value.shape[-1] ** -0.5, dtype, name=name)(value)

        init = nn.initializers.normal(0.01)
        final = self.param("final_token", with_axis_names(init, "length", "embed"), (1, width))
        positions = self.param("positions", with_axis_names(init, "length", "embed"), (options.length, width))
        tokens = [project(text_states, "text_states"), project(text_embedding, "text_embedding")[:, None]]
        if options.time_token:
            tokens.append(TimeEmbedding(width, width, dtype, name="time_embedding")(t)[:, None])
        tokens += [project(x, "image_embedding")[:, None], jnp.broadcast_to(final.astype(dtype)[None], (len(x), 1, width))]
        sequence = add_parameter(jnp.concatenate(tokens, axis=1), positions)
        sequence = nn.with_logical_constraint(sequence, ("batch", None, None))
        extra = options.length - options.text_length
        mask = jnp.pad(text_mask, ((0, 0), (0, extra)), constant_values=True)[:, None, None]
        blocks = {"eps": _EPS, "dropout": self.dropout, "causal": True, **self.compute.transformer}
        transformer = Transformer(width, options.depth, options.heads, **blocks, name="transformer")
        last = layer_norm(_EPS, dtype, "norm")(transformer(sequence, (), deterministic, mask)[:, -1])
        head = Dense((options.embed_dim,), ("embed", "proj"), width**-0.5, dtype, out_dtype=jnp.float32, name="head")
        return head(last)


def make_inputs(options: PriorOptions, text_width: int) -> tuple:
    """Makes inputs of a network for one example: zeros."""
    embedding, length = jnp.zeros((1, options.embed_dim)), options.text_length
    return embedding, jnp.zeros(1, jnp.int32), embedding, jnp.zeros((1, length, text_width)), jnp.ones((1, length), bool)
