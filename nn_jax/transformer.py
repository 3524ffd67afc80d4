"""Pre-norm transformer blocks (arXiv 1706.03762; pre-norm as in GPT-2), stacked by `scan` or unrolled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nn_jax.layers import ACTIVATIONS, Dense, layer_norm

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """True where a query (row) may look: at itself and at what comes before it."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


class Attention(nn.Module):
    """Multi-head self-attention. Kernels: qkv [width, 3, heads, head_dim], out [heads, head_dim, width]."""

    width: int
    heads: int
    std: float
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, mask=None):
        shape = (3, self.heads, self.width // self.heads)
        axes = ("embed", "qkv", "heads", "head_dim")
        qkv = Dense(shape, axes, self.std, self.dtype, name="qkv")(x)  # (B, T, 3, N, H)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask)  # (B, T, N, H)
        axes = ("heads", "head_dim", "embed")
        return Dense((self.width,), axes, self.out_std, self.dtype, inputs=2, name="out")(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches."""

    width: int
    heads: int
    mlp_dim: int
    activation: str
    eps: float
    std: float
    out_std: float
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, mask, deterministic: bool):
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        y = layer_norm(self.eps, self.dtype, "norm1")(x)
        y = Attention(self.width, self.heads, self.std, self.out_std, self.dtype, name="attention")(y, mask)
        x = x + drop(y)
        y = layer_norm(self.eps, self.dtype, "norm2")(x)
        y = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, self.dtype, name="mlp_in")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.with_logical_constraint(y, ("batch", None, "mlp"))
        y = Dense((self.width,), ("mlp", "embed"), self.out_std, self.dtype, name="mlp_out")(y)
        return nn.with_logical_constraint(x + drop(y), ("batch", None, None))


class Transformer(nn.Module):
    """`depth` blocks. Weights start as CLIP's do (openai/CLIP, `initialize_parameters`).

    Attributes:
      mlp_ratio: width of the MLP over that of the stream.
      activation: a key of `nn_jax.layers.ACTIVATIONS`.
      eps: of the layer norms; 1e-5 in CLIP.
      scan: one compiled block for all depths, parameters stacked under `blocks` with a leading axis; else `block_<i>`.
      remat: "none"; "full" recomputes each block in the backward pass; "dots" keeps matrix products.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "..."] | None = None, deterministic: bool = True
    ) -> Float[Array, "batch length width"]:
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], static_argnums=(3,), prevent_cse=not self.scan)
        options = {
            "width": self.width,
            "heads": self.heads,
            "mlp_dim": int(self.mlp_ratio * self.width),
            "activation": self.activation,
            "eps": self.eps,
            "std": self.width**-0.5,
            "out_std": self.width**-0.5 * (2 * self.depth) ** -0.5,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        if not self.scan:
            for number in range(self.depth):
                x = block(**options, name=f"block_{number}")(x, mask, deterministic)
            return x
        stack = nn.scan(
            lambda module, x, _: (module(x, mask, deterministic), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(block(**options, name="blocks"), x, None)[0]
