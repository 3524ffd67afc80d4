"""Pre-norm transformer blocks (arXiv 1706.03762; pre-norm as in GPT-2), stacked by `scan` or unrolled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nn_jax.layers import ACTIVATIONS, Dense, layer_norm, named

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
    def __call__(self, rows: Float[Array, "rows width"], batch: int, mask=None):
        shape = (3, self.heads, self.width // self.heads)
        axes = ("embed", "qkv", "heads", "head_dim")
        qkv = Dense(shape, axes, self.std, self.dtype, name="qkv")(rows)
        qkv = qkv.reshape(batch, -1, *shape)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, T, N, H)
        y = jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(-1, *shape[1:])
        axes = ("heads", "head_dim", "embed")
        return Dense((self.width,), axes, self.out_std, self.dtype, inputs=2, name="out")(y)


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others, with the parameters of `Attention`; `features` come out."""

    heads: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, queries: Float[Array, "batch n width"], keys: Float[Array, "batch m width"]
    ) -> Float[Array, "batch n features"]:
        width = queries.shape[-1]
        std, shape = width**-0.5, (3, self.heads, width // self.heads)
        qkv = _Kernel((width, *shape), ("embed", "qkv", "heads", "head_dim"), std, name="qkv")()
        kernel, bias = (x.astype(self.dtype) for x in qkv)
        q = jnp.einsum("bnd,dhk->bnhk", queries.astype(self.dtype), kernel[:, 0]) + bias[0][None, None]
        kv = jnp.einsum("bmd,dchk->bmchk", keys.astype(self.dtype), kernel[:, 1:]) + bias[1:][None, None]
        y = jax.nn.dot_product_attention(q, kv[:, :, 0], kv[:, :, 1])
        axes = ("heads", "head_dim", "embed")
        return Dense((self.features,), axes, std, self.dtype, inputs=2, name="out")(y)


class _Kernel(nn.Module):
    """A kernel and a bias to be used in parts."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", named(nn.initializers.normal(self.std), *self.axes), self.shape)
        return kernel, self.param("bias", named(nn.initializers.zeros_init(), *self.axes[1:]), self.shape[1:])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches.

    Tokens are rows of one matrix, which matrix products read as it is. Were there a reshape between them, XLA's CPU compiler
    would compute the residual stream's gradient anew, from the last block on, for each of its readers: in unrolled blocks
    that cost grows with the square of the depth (a fifth to a third of a training step at depth 12).
    """

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
        batch, length, _ = x.shape
        x = x.reshape(batch * length, -1)
        y = layer_norm(self.eps, self.dtype, "norm1")(x)
        y = Attention(self.width, self.heads, self.std, self.out_std, self.dtype, name="attention")(y, batch, mask)
        x = x + drop(y)
        y = layer_norm(self.eps, self.dtype, "norm2")(x)
        y = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, self.dtype, name="mlp_in")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.with_logical_constraint(y, ("batch", "mlp"))
        y = Dense((self.width,), ("mlp", "embed"), self.out_std, self.dtype, name="mlp_out")(y)
        x = (x + drop(y)).reshape(batch, length, -1)
        return nn.with_logical_constraint(x, ("batch", None, None))


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
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "..."] | None = None,
        deterministic: bool = True,
        last_mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "batch length width"]:
        """`mask`: where a token (row) may look, the same in all blocks; `last_mask`: another one for the last block."""
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], static_argnums=(3,), prevent_cse=not self.scan)
        options = {
            "width": self.width,
            "heads": self.heads,
            "mlp_dim": round(self.mlp_ratio * self.width),
            "activation": self.activation,
            "eps": self.eps,
            "std": self.width**-0.5,
            "out_std": self.width**-0.5 * (2 * self.depth) ** -0.5,
            "dropout": self.dropout,
            "dtype": self.dtype,
        }
        if not self.scan:
            for number in range(self.depth):
                seen = last_mask if last_mask is not None and number == self.depth - 1 else mask
                x = block(**options, name=f"block_{number}")(x, seen, deterministic)
            return x

        def seen_at(number):
            if last_mask is None:
                return mask
            return jnp.where(number == self.depth - 1, last_mask, True if mask is None else mask)

        stack = nn.scan(
            lambda module, x, number: (module(x, seen_at(number), deterministic), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(block(**options, name="blocks"), x, jnp.arange(self.depth))[0]
