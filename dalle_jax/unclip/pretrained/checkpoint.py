"""Format-independent checkpoint of unCLIP: options of all parts, and a function that reads their weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.pretrained.checkpoint import check_shapes
from clip_jax.pretrained.text_tower import TextCheckpoint
from dalle_jax.unclip.context import Context, ContextEncoder
from dalle_jax.unclip.diffusion import Diffusion, output_channels
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.prior_networks import EmbeddingStatistics, PriorTransformer
from dalle_jax.unclip.unet import UNet
from train_jax.compute import TransformerCompute
from train_jax.errors import LoadError
from train_jax.weights.layout import unflatten

# The last step of super resolution has a network of its own.
PARTS = ("text_encoder", "prior", "context", "decoder", "super_res_first", "super_res_last")
STATISTICS = "statistics/"  # prefix of the statistics among the prior's arrays


@dataclasses.dataclass(frozen=True)
class UnclipCheckpoint:
    """Opened checkpoint whose weights are not read yet.

    Attributes:
      name: source, for messages.
      text: CLIP's text tower and tokenizer.
      prior, decoder, super_res: options of the networks.
      prior_diffusion, decoder_diffusion, super_res_diffusion: what the networks predict.
      read: function that reads the weights of a part, one of `PARTS`, as float32 arrays by unrolled names (see
        `train_jax.weights.layout`). Those of the prior include `statistics/mean` and `statistics/std`.
    """

    name: str
    text: TextCheckpoint
    prior: PriorOptions
    decoder: DecoderOptions
    super_res: UNetOptions
    prior_diffusion: Diffusion
    decoder_diffusion: Diffusion
    super_res_diffusion: Diffusion
    read: Callable[[str], dict[str, np.ndarray]]

    def __post_init__(self):
        text, prior, decoder = self.text.options, self.prior, self.decoder
        for what, value, required in (
            ("the prior's embed_dim", prior.embed_dim, text.embed_dim),
            ("the decoder's embed_dim", decoder.embed_dim, text.embed_dim),
            ("the prior's text_length", prior.text_length, text.text.context_length),
        ):
            if value != required:
                raise LoadError(f"{self.name}: {what} is {value}, where its text encoder has {required}")

    def module(self, part: str, compute: TransformerCompute) -> nn.Module:
        """Builds the Flax module of a part."""
        if part == "text_encoder":
            return self.text.module(compute)
        if part == "prior":
            return PriorTransformer(self.prior, compute)
        if part == "context":
            return ContextEncoder(self.decoder, compute)
        if part == "decoder":
            return UNet(self.decoder, output_channels(self.decoder_diffusion), compute)
        return UNet(self.super_res, output_channels(self.super_res_diffusion), compute)

    def params(self, part: str, compute: TransformerCompute) -> dict[str, Any]:
        """Reads the parameters of `module(part, compute)`. Raises LoadError if names or shapes do not match."""
        arrays = {name: x for name, x in self.read(part).items() if not name.startswith(STATISTICS)}
        params = unflatten(arrays, compute.scan)
        init = jax.eval_shape(self.module(part, compute).init, jax.random.key(0), *self._inputs(part))
        check_shapes(params, nn.unbox(init)["params"], f"{self.name}: {part}")
        return params

    def statistics(self) -> EmbeddingStatistics:
        """Reads the statistics of CLIP's image embeddings. Raises LoadError for deviations that are not positive.

        A prior of one step predicts embeddings as they are: with mean 0 and deviation 1.
        """
        if not self.prior.time_token:
            return EmbeddingStatistics(jnp.zeros(self.prior.embed_dim), jnp.ones(self.prior.embed_dim))
        arrays = self.read("prior")
        mean, std = (arrays[f"{STATISTICS}{name}"] for name in ("mean", "std"))
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and std.min() > 0):
            raise LoadError(f"{self.name}: the prior's clip_std must be positive; its least value is {std.min()}")
        return EmbeddingStatistics(jnp.asarray(mean), jnp.asarray(std))

    def _inputs(self, part: str) -> tuple:
        """Returns abstract inputs of a part, for one example."""
        text, length, dim = self.text.options, self.prior.text_length, self.prior.embed_dim

        def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((1, *shape), dtype)

        t, embedding = array(dtype=jnp.int32), array(dim)
        text_inputs = (embedding, array(length, text.text.width), array(length, dtype=bool))
        if part == "text_encoder":
            return (array(length, dtype=jnp.int32),)
        if part == "prior":
            return (embedding, t, *text_inputs)
        if part == "context":
            return (embedding, *text_inputs, array(dtype=bool))
        if part == "decoder":
            options, tokens = self.decoder, self.decoder.image_tokens + length
            context = Context(
                array(4 * options.channels[0]), array(tokens, options.context_dim), array(tokens, dtype=bool)
            )
            return (array(options.size, options.size, 3), t, context)
        return (array(self.super_res.size, self.super_res.size, 6), t)
