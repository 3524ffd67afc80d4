"""The autoregressive prior: a transformer over quantised principal components (arXiv 2204.06125, section 2.2).

The codes of an image embedding are first that of its cosine to the text embedding, z_i . z_t of unit vectors, and then those
of its leading principal components, in the order of decreasing variance. The condition is the text:

    text tokens, text embedding -> cosine, component 1, …, component m

Unlike in the paper, where the dot product is a part of the condition, the transformer also predicts its distribution, of
which sampling needs the upper half: so it is that of the images of this text.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32

from dalle_jax.unclip.options import PriorOptions
from dalle_jax.unclip.prior_networks import standard_deviations
from dalle_jax.unclip.text_features import TextFeatures
from nn_jax.code_transformer import CodeTransformer, unroll_for_decoding
from nn_jax.decoding import Sampling, decode
from nn_jax.layers import Dense, l2_normalize, with_axis_names
from train_jax.compute import TransformerCompute
from train_jax.profiling import dense_flops, transformer_flops
from vqgan_jax.stage2.likelihood import NATS_PER_BIT, cross_entropy

_RANGE = 5.0  # standard deviations of a component that buckets cover on each side, like the diffusion prior's x0_range


class TextPrefix(nn.Module):
    """Embeds a text as the tokens that precede codes: CLIP's output for each text token, and the text embedding.

    Padding is the same for all texts: a learned vector of each position, as in DALL-E (arXiv 2102.12092, section 2.2).

    Attributes:
      length: number of text tokens, plus 1.
    """

    length: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, text: TextFeatures) -> Float32[Array, "b length width"]:
        """Embeds the text features of a batch."""

        def project(value, name: str):
            return Dense((self.width,), ("proj", "embed"), value.shape[-1] ** -0.5, self.dtype, name=name)(value)

        states = jnp.where(text.mask[..., None], project(text.states, "text_states"), 0)
        init = with_axis_names(nn.initializers.normal(0.01), "length", "embed")
        positions = self.param("positions", init, (self.length, self.width))
        tokens = jnp.concatenate([states, project(text.embedding, "text_embedding")[:, None]], axis=1)
        return tokens.astype(jnp.float32) + positions[None]


@dataclasses.dataclass(frozen=True)
class AutoregressivePrior:
    """Transformer over codes of embeddings; see `dalle_jax.unclip.prior_model.PriorModel` for its interface.

    Attributes:
      network: model of the codes [b, 1 + components], cosine first, with the condition `TextFeatures`.
    """

    options: PriorOptions
    network: CodeTransformer

    timesteps = None
    is_deterministic = False

    @classmethod
    def build(cls, options: PriorOptions, compute: TransformerCompute, dropout: float = 0.0) -> "AutoregressivePrior":
        """Builds the prior from its options; `dropout` is the rate of embeddings and blocks during training."""
        network = CodeTransformer(
            condition=TextPrefix(options.text_length + 1, options.width, compute.array_dtype),
            num_codes=options.buckets,
            grid=(1, 1 + options.components),
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            dropout=dropout,
            dtype=compute.array_dtype,
            blocks=compute.blocks,
        )
        return cls(options, network)

    def init(self, rng: jax.Array, text_width: int) -> Any:
        """Initialises the parameters of the network; `text_width` is the width of CLIP's text tower."""
        length = self.options.text_length
        embedding, states = jnp.zeros((1, self.options.embed_dim)), jnp.zeros((1, length, text_width))
        text = TextFeatures(embedding, states, jnp.ones((1, length), bool))
        return self.network.init(rng, text, jnp.zeros((1, self.network.length), jnp.int32))["params"]

    def measure(
        self, mean: Float32[np.ndarray, "dim"], covariance: Float32[np.ndarray, "dim dim"]
    ) -> dict[str, np.ndarray]:
        """Computes `mean` and `std` [dim], principal `axes` [dim, components], and the components' deviations `scales`."""
        variances, axes = np.linalg.eigh(covariance.astype(np.float64))
        return {
            "mean": mean,
            "std": standard_deviations(np.diag(covariance)),
            "axes": axes[:, ::-1][:, : self.options.components].astype(np.float32),
            "scales": np.sqrt(np.maximum(variances[::-1][: self.options.components], 0)).astype(np.float32),
        }

    def encode(self, statistics, embeddings, text_embedding) -> Int32[Array, "b codes"]:
        """Converts embeddings to codes: the cosine with the text, and the principal components."""
        cosines = jnp.sum(l2_normalize(embeddings) * l2_normalize(text_embedding), axis=-1, keepdims=True)
        centered = embeddings - statistics["mean"][None]
        scales = jnp.maximum(statistics["scales"], jnp.finfo(jnp.float32).tiny)  # 0 where embeddings never differ
        components = jnp.matmul(centered, statistics["axes"], precision="highest") / scales[None]
        codes = (quantize(cosines, 1.0, self.options.buckets), quantize(components, _RANGE, self.options.buckets))
        return jnp.concatenate(codes, axis=1)

    def restore(self, statistics, x) -> Float32[Array, "b dim"]:
        """Converts codes to embeddings."""
        components = dequantize(x[:, 1:], _RANGE, self.options.buckets) * statistics["scales"][None]
        return statistics["mean"][None] + jnp.matmul(components, statistics["axes"].T, precision="highest")

    def loss(self, params, x, text, rng):
        """Computes the mean cross-entropy of the codes `x` in nats, and metrics."""
        _, logits = self.network.apply({"params": params}, text, x, False, rngs={"dropout": rng})
        nats = jnp.mean(cross_entropy(logits, x))
        return nats, {"bits_per_code": nats / NATS_PER_BIT}

    def make_steps(self, count: int) -> None:
        """Returns None: codes are sampled one after the other."""
        del count

    def sample(self, params, text, null, keys, steps, guidance) -> Int32[Array, "b codes"]:
        """Samples codes, with the cosine from the upper half of its distribution.

        Samples of a text share the KV cache of its prefix, and all share that of the empty text.
        """
        network, params = unroll_for_decoding(self.network, params)

        def prefill(rows: TextFeatures):
            return network.apply({"params": params}, rows, jnp.zeros((len(rows.mask), 0), jnp.int32), method="prefill")

        prefilled = [prefill(rows) for rows in (text, null) if rows is not None]
        prefixes = tuple(zip(*(caches for _, caches in prefilled), strict=True))
        first = [jnp.repeat(logits, len(keys) // len(logits), axis=0) for logits, _ in prefilled]
        logits = jnp.stack(first, axis=1).reshape(-1, self.options.buckets)
        caches = tuple(cache.grow(network.length) for cache in network.bind({}).empty_caches(len(logits)))

        def decode_step(codes, index, caches):
            return network.apply({"params": params}, codes, index, prefixes, caches, method="decode_step")

        # `decode` draws no noise for the cosine, as it is known: its key is free.
        cosine_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        cosines = jax.vmap(draw_upper_half)(cosine_keys, first[0])
        is_cosine = jnp.broadcast_to(jnp.arange(network.length) == 0, (len(keys), network.length))
        codes, _, _ = decode(
            decode_step,
            logits,
            caches,
            keys,
            Sampling(guidance=guidance),
            positions=jnp.arange(network.length),
            guided=null is not None,
            known_codes=jnp.where(is_cosine, cosines[:, None], 0),
            known_mask=is_cosine,
        )
        return codes

    def flops(self, text_width: int) -> int:
        """Returns the FLOPs of a forward pass for one example."""
        options, width = self.options, self.options.width
        flops = transformer_flops(options.text_length + 1 + options.components, width, options.depth)
        flops += dense_flops(options.text_length, text_width, width) + dense_flops(1, options.embed_dim, width)
        return flops + dense_flops(1 + options.components, width, options.buckets)


def quantize(x: Float[Array, "b n"], limit: float, buckets: int) -> Int32[Array, "b n"]:
    """Returns the buckets of values: of equal width from -limit to limit. Values beyond are in the first or last bucket.

    Equal widths make no assumption about the distribution of a component, and bound the error by half of one.
    """
    return jnp.clip(jnp.floor((x / limit + 1) / 2 * buckets), 0, buckets - 1).astype(jnp.int32)


def dequantize(codes: Int[Array, "b n"], limit: float, buckets: int) -> Float32[Array, "b n"]:
    """Returns the centres of buckets: the inverse of `quantize` up to half the width of a bucket, limit / buckets."""
    return ((codes + 0.5) / buckets * 2 - 1) * limit


def draw_upper_half(key: jax.Array, logits: Float[Array, "k"]) -> Int32[Array, ""]:
    """Samples a code from the upper half of its distribution: at a quantile between 1/2 and 1."""
    quantile = jax.random.uniform(key, minval=0.5)
    below = jnp.cumsum(jax.nn.softmax(logits.astype(jnp.float32))) <= quantile
    return jnp.minimum(jnp.sum(below), len(logits) - 1).astype(jnp.int32)
