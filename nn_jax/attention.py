"""Multi-head attention (arXiv 1706.03762, section 3.2): within one sequence, from one to another, and with a KV cache.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nn_jax.layers import Dense


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    *,
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """Computes scaled dot-product attention, softmax(q k^T / sqrt(h)) v, of each of `n` heads.

    Args:
      mask: broadcasts to [b, n, t, s]; True where a query may attend to a key.
      causal: a query attends to keys at its own position and before alone.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


class KVCache(NamedTuple):
    """Keys and values of one block for every position of a sequence; zeros where they are not written yet."""

    keys: Float[Array, "batch heads length head_dim"]
    values: Float[Array, "batch heads length head_dim"]

    @classmethod
    def empty(cls, batch: int, length: int, heads: int, head_dim: int, dtype: DTypeLike) -> "KVCache":
        zeros = jnp.zeros((batch, heads, length, head_dim), dtype)
        return cls(zeros, zeros)

    def write(self, k: Float[Array, "b t n h"], v: Float[Array, "b t n h"], position: int | Int[Array, ""]) -> "KVCache":
        """Returns the cache with `t` more keys and values, from `position` on."""
        start = (0, 0, position, 0)
        return KVCache(
            jax.lax.dynamic_update_slice(self.keys, k.transpose(0, 2, 1, 3), start),
            jax.lax.dynamic_update_slice(self.values, v.transpose(0, 2, 1, 3), start),
        )

    def attend(self, q: Float[Array, "b t n h"], mask: Bool[Array, "..."]) -> Float[Array, "b t n h"]:
        """Attends to the cache; `mask` broadcasts to [b, n, t, length] and hides what is not written yet."""
        scores = jnp.einsum("btnh,bnsh->bnts", q, self.keys, preferred_element_type=jnp.float32)
        scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        return jnp.einsum("bnts,bnsh->btnh", weights, self.values)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Kernels: `qkv` [width, 3, heads, head_dim], `out` [heads, head_dim, width].

    Tokens are [batch, length, width] or, with `batch` given, rows [batch * length, width] (see `nn_jax.transformer.Block`).

    Attributes:
      causal: a token attends to itself and those before it alone.
    """

    width: int
    heads: int
    std: float
    out_std: float
    causal: bool
    dtype: DTypeLike

    def setup(self):
        head_dim = self.width // self.heads
        axes = ("embed", "qkv", "heads", "head_dim")
        self.qkv = Dense((3, self.heads, head_dim), axes, self.std, self.dtype)
        self.out = Dense((self.width,), ("heads", "head_dim", "embed"), self.out_std, self.dtype, inputs=2)

    def __call__(self, x: Float[Array, "... width"], batch: int, mask: Bool[Array, "..."] | None = None):
        q, k, v = self._project(x, batch)
        return self._merge(attend(q, k, v, mask=mask, causal=self.causal), x)

    def prefill(self, x: Float[Array, "... width"], batch: int, cache: KVCache, mask: Bool[Array, "..."] | None = None):
        """Attends among the first tokens of a sequence; also returns the cache with their keys and values."""
        q, k, v = self._project(x, batch)
        return self._merge(attend(q, k, v, mask=mask, causal=self.causal), x), cache.write(k, v, 0)

    def decode_step(
        self, x: Float[Array, "... width"], batch: int, cache: KVCache, position: Int[Array, ""], mask: Bool[Array, "..."]
    ):
        """Attends from the token at `position` to the cache, itself included; also returns the cache with its key and
        value.
        """
        q, k, v = self._project(x, batch)
        cache = cache.write(k, v, position)
        return self._merge(cache.attend(q, mask), x), cache

    def _project(self, x, batch: int):
        qkv = self.qkv(x)
        qkv = qkv.reshape(batch, -1, *qkv.shape[-3:])
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, T, N, H)

    def _merge(self, y, x):
        return self.out(y.reshape(*x.shape[:-1], *y.shape[-2:]))


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a sequence of keys. Kernels: `q`, `k`, `v` [width, heads, head_dim], `out`.

    Attributes:
      features: width of the result.
      out_dtype: see `Dense`.
    """

    heads: int
    features: int
    dtype: DTypeLike
    out_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, queries: Float[Array, "batch n width"], keys: Float[Array, "batch m width"]
    ) -> Float[Array, "batch n features"]:
        width = queries.shape[-1]
        std = width**-0.5

        def project(x, name: str):
            features, axes = (self.heads, width // self.heads), ("embed", "heads", "head_dim")
            return Dense(features, axes, std, self.dtype, name=name)(x)

        y = attend(project(queries, "q"), project(keys, "k"), project(keys, "v"))
        axes = ("heads", "head_dim", "embed")
        return Dense((self.features,), axes, std, self.dtype, inputs=2, out_dtype=self.out_dtype, name="out")(y)
