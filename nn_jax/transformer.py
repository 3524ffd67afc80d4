"""Pre-norm transformer blocks (arXiv 1706.03762; pre-norm as in GPT-2), stacked by `scan` or unrolled.

What comes token by token (`nn_jax.decode`) keeps the keys and values of earlier tokens in a cache, so that a token costs one
row of each matrix product, and sees exactly what it would see in a whole sequence.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nn_jax.layers import ACTIVATIONS, DTYPES, Dense, add, layer_norm, named
from nn_jax.product import product

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check(options: Mapping[str, Any], require: Callable[[bool, str, str], None]) -> None:
    """Refuses options of which no `Transformer` can be made.

    Args:
      options: width, depth, heads, mlp_ratio, dropout, activation, remat, dtype.
      require: `(condition, key, allowed)` raises, where the condition does not hold, an error that names all three.
    """
    require(options["heads"] >= 1, "heads", "at least 1")
    require(options["width"] >= 1 and options["width"] % options["heads"] == 0, "width", "a multiple of model.heads")
    require(options["depth"] >= 1, "depth", "at least 1")
    require(round(options["mlp_ratio"] * options["width"]) >= 1, "mlp_ratio", "positive")
    require(0 <= options["dropout"] < 1, "dropout", "in [0, 1)")
    require(options["activation"] in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
    require(options["remat"] in REMAT, "remat", f"one of {', '.join(REMAT)}")
    require(options["dtype"] in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """True where a query (row) may look: at itself and at what comes before it."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


class Cache(NamedTuple):
    """Keys and values of one block, for every place of a sequence, whether it is known yet or not."""

    keys: Float[Array, "batch heads length head_dim"]
    values: Float[Array, "batch heads length head_dim"]


def empty_cache(
    batch: int, length: int, *, depth: int, heads: int, head_dim: int, dtype: DTypeLike
) -> tuple[Cache, ...]:
    """A cache for each of `depth` blocks, with room for `length` tokens."""
    zeros = jnp.zeros((batch, heads, length, head_dim), dtype)
    return tuple(Cache(zeros, zeros) for _ in range(depth))


def unrolled(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a `Transformer` with `scan` as those of one without."""
    if "blocks" not in params:
        return dict(params)
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)}


class Attention(nn.Module):
    """Multi-head self-attention. Kernels: qkv [width, 3, heads, head_dim], out [heads, head_dim, width].

    `(y, cache)` comes out: with a cache, the new keys and values are written into it from `position` on. At the position 0
    (a Python int: a prefill) the tokens look at one another alone; at any other, or a traced one, they look at the whole
    cache, of which `mask` must hide what is not written yet.
    """

    width: int
    heads: int
    std: float
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "... width"], batch: int, mask=None, cache: Cache | None = None, position=0):
        shape = (3, self.heads, self.width // self.heads)
        axes = ("embed", "qkv", "heads", "head_dim")
        qkv = Dense(shape, axes, self.std, self.dtype, name="qkv")(x)
        qkv = qkv.reshape(batch, -1, *shape)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, T, N, H)
        if cache is not None:
            new = (y.transpose(0, 2, 1, 3) for y in (k, v))
            place = (0, 0, position, 0)
            cache = Cache(*(jax.lax.dynamic_update_slice(old, y, place) for old, y in zip(cache, new, strict=True)))
        if cache is None or (isinstance(position, int) and position == 0):
            y = jax.nn.dot_product_attention(q, k, v, mask=mask)
        else:
            y = _attend(q, cache, mask)
        y = y.reshape(*x.shape[:-1], *shape[1:])
        axes = ("heads", "head_dim", "embed")
        return Dense((self.width,), axes, self.out_std, self.dtype, inputs=2, name="out")(y), cache


def _attend(q: Float[Array, "b t n h"], cache: Cache, mask: Bool[Array, "..."]) -> Float[Array, "b t n h"]:
    """What `jax.nn.dot_product_attention` computes, from keys and values as the cache holds them."""
    scores = jnp.einsum("btnh,bnsh->bnts", q, cache.keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bnsh->btnh", weights, cache.values)


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others, with the parameters of `Attention`; `features` come out."""

    heads: int
    features: int
    dtype: DTypeLike
    out_dtype: DTypeLike | None = None  # see `Dense`

    @nn.compact
    def __call__(
        self, queries: Float[Array, "batch n width"], keys: Float[Array, "batch m width"]
    ) -> Float[Array, "batch n features"]:
        width = queries.shape[-1]
        std, shape = width**-0.5, (3, self.heads, width // self.heads)
        kernel, bias = _Kernel((width, *shape), ("embed", "qkv", "heads", "head_dim"), std, name="qkv")()
        q = add(product(queries.astype(self.dtype), kernel[:, 0], 1), bias[0])
        kv = add(product(keys.astype(self.dtype), kernel[:, 1:], 1), bias[1:])
        y = jax.nn.dot_product_attention(q, kv[:, :, 0], kv[:, :, 1])
        axes = ("heads", "head_dim", "embed")
        return Dense((self.features,), axes, std, self.dtype, inputs=2, out_dtype=self.out_dtype, name="out")(y)


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

    For a CPU tokens are rows of one matrix, which matrix products read as it is. Were there a reshape between them, XLA's
    CPU compiler would compute the residual stream's gradient anew, from the last block on, for each of its readers: in
    unrolled blocks that cost grows with the square of the depth (a fifth to a third of a training step at depth 12).
    Elsewhere tokens keep their axis, and the compiler chooses.
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
    def __call__(self, x, mask, deterministic: bool, cache: Cache | None = None, position=0):
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        batch, length, _ = x.shape
        rows = _for_cpu()
        if rows:
            x = x.reshape(batch * length, -1)
        y = layer_norm(self.eps, self.dtype, "norm1")(x)
        attention = Attention(self.width, self.heads, self.std, self.out_std, self.dtype, name="attention")
        y, cache = attention(y, batch, mask, cache, position)
        x = x + drop(y)
        y = layer_norm(self.eps, self.dtype, "norm2")(x)
        y = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, self.dtype, name="mlp_in")(y)
        y = ACTIVATIONS[self.activation](y)
        y = nn.with_logical_constraint(y, ("batch", "mlp") if rows else ("batch", None, "mlp"))
        y = Dense((self.width,), ("mlp", "embed"), self.out_std, self.dtype, name="mlp_out")(y)
        x = (x + drop(y)).reshape(batch, length, -1)
        return nn.with_logical_constraint(x, ("batch", None, None)), cache


def _for_cpu() -> bool:
    """Whether this program is traced for a CPU: for the devices of the mesh that is set, or else for JAX's default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


class Transformer(nn.Module):
    """`depth` blocks. Weights start as CLIP's do (openai/CLIP, `initialize_parameters`).

    Attributes:
      mlp_ratio: width of the MLP over that of the stream.
      activation: a key of `nn_jax.layers.ACTIVATIONS`.
      eps: of the layer norms; 1e-5 in CLIP.
      scan: one compiled block for all depths, parameters stacked under `blocks` with a leading axis; else `block_<i>`.
      remat: "none"; "full" recomputes each block in the backward pass; "dots" keeps matrix products.
      kinds: of each block, which of the masks it sees; (): there is one mask for all.
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
    kinds: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "..."] | None = None,
        deterministic: bool = True,
        cache: tuple[Cache, ...] | None = None,
        position: int | Int[Array, ""] = 0,
    ):
        """The stream after all blocks; with a cache `(stream, cache)`, for unrolled blocks alone.

        Args:
          mask: where a token (row) may look; with `kinds`, stacked masks [kinds, ...], of which each block takes its own.
          cache: of each block, as `empty_cache` makes it.
          position: of `x`'s first token in the cache; see `Attention`.
        """
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
        if self.kinds and len(self.kinds) != self.depth:
            raise ValueError(f"kinds names the masks of {len(self.kinds)} blocks; there are {self.depth}")
        if not self.scan:
            found = []
            for number in range(self.depth):
                seen = mask[self.kinds[number]] if self.kinds else mask
                here = () if cache is None else (cache[number], position)
                x, after = block(**options, name=f"block_{number}")(x, seen, deterministic, *here)
                found.append(after)
            return x if cache is None else (x, tuple(found))
        if cache is not None:
            raise ValueError("a cache needs unrolled blocks: scan=False, with parameters as `unrolled` gives them")

        stack = nn.scan(
            lambda module, x, kind: module(x, mask[kind] if self.kinds else mask, deterministic),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(block(**options, name="blocks"), x, jnp.asarray(self.kinds or (0,) * self.depth))[0]
