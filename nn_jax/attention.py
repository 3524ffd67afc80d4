"""Multi-head attention (arXiv 1706.03762, section 3.2): self-attention, cross-attention, and a KV cache."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int8

from nn_jax.layers import Dense, add_parameter, layer_norm, with_axis_names
from nn_jax.rotary import rotate

NAME = "attention"  # checkpoint name of the residuals of `recomputing_attention`


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    *,
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """Computes scaled dot-product attention, softmax(q k^T / sqrt(h)) v, for `n` heads.

    Programs for NVIDIA GPUs use cuDNN's fused kernel in 16-bit dtypes (`is_fused`), and otherwise, like those for TPUs,
    `recomputing_attention`. Both keep no scores for the backward pass; they differ by rounding, and have no forward-mode
    derivative. Programs for CPUs use `jax.nn.dot_product_attention`.

    Args:
      mask: mask that broadcasts to [b, n, t, s]; True where a query may attend to a key.
      causal: whether queries attend only to keys at the same position and before.
    """
    if is_fused(q, mask):
        cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
        return _on_each_device(lambda q, k, v: with_even_lengths(cudnn, q, k, v, causal), q, k, v)
    if platform() == "cpu":
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    if causal:
        past = jnp.tri(q.shape[1], k.shape[1], dtype=bool)[None, None]
        mask = past if mask is None else mask & past
    return recomputing_attention(q, k, v, mask)


@jax.custom_vjp
def recomputing_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "..."] | None,
) -> Float[Array, "b t n h"]:
    """Computes attention whose backward pass recomputes the scores (as in FlashAttention, arXiv 2205.14135, section 3.1).

    Between the passes it keeps the output and the log-sum-exp of each query's scores, under the checkpoint name
    `NAME`. Weights are normalised after the product with `v`, so no float32 [t, s] array is divided by its sums. Scores,
    sums and the log-sum-exp are float32.

    Args:
      mask: mask that broadcasts to [b, n, t, s]; every query must attend to a key.
    """
    return _attention_forward(q, k, v, mask)[0]


def _scores(q, k, mask):
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _attention_forward(q, k, v, mask):
    scores = _scores(q, k, mask)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest).astype(v.dtype)
    total = jnp.sum(weights, axis=-1, dtype=jnp.float32)
    y = jnp.einsum("bnts,bsnh->btnh", weights, v, preferred_element_type=jnp.float32)
    y = checkpoint_name((y / total.swapaxes(1, 2)[..., None]).astype(v.dtype), NAME)
    lse = largest[..., 0] + jnp.log(total)
    return y, (q, k, v, mask, y, checkpoint_name(lse, NAME))


def _attention_backward(residuals, d_y):
    q, k, v, mask, y, lse = residuals
    weights = jnp.exp(_scores(q, k, mask) - lse[..., None])
    inner = jnp.sum(d_y.astype(jnp.float32) * y.astype(jnp.float32), axis=-1).swapaxes(1, 2)[..., None]
    d_weights = jnp.einsum("btnh,bsnh->bnts", d_y, v, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - inner) * q.shape[-1] ** -0.5).astype(q.dtype)
    d_v = jnp.einsum("bnts,btnh->bsnh", weights.astype(v.dtype), d_y)
    d_q, d_k = jnp.einsum("bnts,bsnh->btnh", d_scores, k), jnp.einsum("bnts,btnh->bsnh", d_scores, q)
    return d_q, d_k, d_v, None


recomputing_attention.defvjp(_attention_forward, _attention_backward)


def is_fused(q: Float[Array, "b t n h"], mask: Bool[Array, "..."] | None) -> bool:
    """Returns whether `attend` uses cuDNN's fused kernel: on GPUs, in 16-bit dtypes, without a mask or with a causal one."""
    heads = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
    return platform() in ("gpu", "cuda") and mask is None and heads and q.dtype.itemsize == 2


def with_even_lengths(attention: Callable, q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Computes `attention(q, k, v, is_causal=…)`, padding odd lengths by one token: cuDNN cannot differentiate them."""
    length, padding = q.shape[1], [x.shape[1] % 2 for x in (q, k)]
    if not any(padding):
        return attention(q, k, v, is_causal=causal)
    lengths = {}
    if not causal:  # where it is causal, no query attends to what follows it
        names = ("query_seq_lengths", "key_value_seq_lengths")
        lengths = {name: jnp.full(x.shape[0], x.shape[1], jnp.int32) for name, x in zip(names, (q, k), strict=True)}
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return attention(q, k, v, is_causal=causal, **lengths)[:, :length]


def _on_each_device(attention: Callable, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes `attention(q, k, v)` for the examples and heads of each device separately, where some mesh axes are manual.

    There the compiler cannot partition cuDNN's kernel over the other axes; elsewhere it does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = set(mesh.axis_names) - set(mesh.manual_axes)
    if not mesh.manual_axes or not axes:
        return attention(q, k, v)
    spec = nn.logical_to_mesh_axes(("batch", None, "heads"))
    sizes = [math.prod(mesh.shape[axis] for axis in ((x,) if isinstance(x, str) else x or ())) for x in spec]
    spec = P(*(x if n % size == 0 else None for x, n, size in zip(spec, q.shape, sizes, strict=False)))
    return jax.shard_map(attention, in_specs=(spec,) * 3, out_specs=spec, axis_names=axes, check_vma=False)(q, k, v)


def or_itself(mask: Bool[Array, "b t"]) -> Bool[Array, "b 1 t t"]:
    """Returns the mask of attention to the tokens of `mask`, and of each token to itself: a softmax needs at least one."""
    return mask[:, None, None] | jnp.eye(mask.shape[1], dtype=bool)[None, None]


def platform() -> str:
    """Returns the platform for which a program is traced: of the current mesh, or else of JAX's default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


class KVCache(NamedTuple):
    """KV cache of one block: keys and values at consecutive positions of sequences, zero at unwritten positions.

    Attributes:
      key_scales, value_scales: factors of int8 keys and values, one for each head and position; None: keys and values are
        floats.
      mask: positions that queries attend to; None: all.
      context: of a prefix, the cache of the context to which the block cross-attends; None: no cross-attention.
    """

    keys: Float[Array, "batch heads length head_dim"] | Int8[Array, "batch heads length head_dim"]
    values: Float[Array, "batch heads length head_dim"] | Int8[Array, "batch heads length head_dim"]
    key_scales: Float32[Array, "batch heads length"] | None = None
    value_scales: Float32[Array, "batch heads length"] | None = None
    mask: Bool[Array, "batch 1 length"] | None = None
    context: "KVCache | None" = None

    @classmethod
    def empty(cls, batch: int, length: int, heads: int, head_dim: int, dtype: DTypeLike) -> "KVCache":
        """Makes a cache of zeros, of a float dtype or int8."""
        zeros = jnp.zeros((batch, heads, length, head_dim), dtype)
        scales = jnp.zeros(zeros.shape[:-1]) if zeros.dtype == jnp.int8 else None
        return cls(zeros, zeros, scales, scales)

    @property
    def length(self) -> int:
        """Number of positions, written or not."""
        return self.keys.shape[2]

    def grow(self, length: int) -> "KVCache":
        """Returns the cache with room for `length` positions."""
        return jax.tree.map(lambda x: jnp.pad(x, [(0, (length - x.shape[2]) * (axis == 2)) for axis in range(x.ndim)]), self)

    def write(self, k: Float[Array, "b t n h"], v: Float[Array, "b t n h"], position: int | Int[Array, ""]) -> "KVCache":
        """Returns the cache with `t` keys and values written from `position` on."""
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        entries = KVCache(k, v)
        if self.key_scales is not None:
            (k, key_scales), (v, value_scales) = _quantize(k), _quantize(v)
            entries = KVCache(k, v, key_scales, value_scales)

        def update(cache, x):
            return jax.lax.dynamic_update_slice(cache, x, (0, 0, position, 0)[: x.ndim])

        return jax.tree.map(update, self, entries)

    def take(self, positions: Int[Array, "k"]) -> "KVCache":
        """Gathers positions."""
        return jax.tree.map(lambda x: jnp.take(x, positions, axis=2, mode="clip"), self)

    def scores(self, q: Float[Array, "b n h"]) -> Float32[Array, "b n length"]:
        """Computes q k^T of queries with the keys. Each row of the cache serves as many consecutive rows of queries."""
        grouped = self._group(q)
        products = jnp.einsum(
            "cgnh,cnsh->cngs", grouped, self.keys.astype(q.dtype), preferred_element_type=jnp.float32
        )
        if self.key_scales is not None:
            products = products * self.key_scales[:, :, None]
        if self.mask is not None:
            products = jnp.where(self.mask[:, :, None], products, jnp.finfo(jnp.float32).min)
        return self._ungroup(products.swapaxes(1, 2), q.shape[1])

    def weigh(self, weights: Float32[Array, "b n length"], dtype: DTypeLike) -> Float32[Array, "b n h"]:
        """Sums the values with the attention weights, which are rounded to `dtype`; rows as in `scores`."""
        grouped = self._group(weights).swapaxes(1, 2)  # (c, n, g, s)
        if self.value_scales is not None:
            grouped = grouped * self.value_scales[:, :, None]
        sums = jnp.einsum(
            "cngs,cnsh->cgnh", grouped.astype(dtype), self.values.astype(dtype), preferred_element_type=jnp.float32
        )
        return self._ungroup(sums, weights.shape[1])

    def _group(self, x: Float[Array, "b n m"]) -> Float[Array, "c g k m"]:
        """Groups the rows, and the heads that share keys and values, by the rows and heads of the cache."""
        rows, own = self.keys.shape[:2]
        _, heads, size = x.shape
        return x.reshape(rows, -1, own, heads // own, size).swapaxes(2, 3).reshape(rows, -1, own, size)

    def _ungroup(self, x: Float[Array, "c g k m"], heads: int) -> Float[Array, "b n m"]:
        """Undoes `_group`, for `heads` heads of queries."""
        rows, _, own, size = x.shape
        return x.reshape(rows, -1, heads // own, own, size).swapaxes(2, 3).reshape(-1, heads, size)


def _quantize(x: Float[Array, "b n t h"]) -> tuple[Int8[Array, "b n t h"], Float32[Array, "b n t"]]:
    """Rounds vectors to 8 bits with a scale each, so that the largest component becomes 127."""
    scales = jnp.max(jnp.abs(x), axis=-1).astype(jnp.float32) / 127
    return jnp.round(x / jnp.maximum(scales, 1e-30)[..., None]).astype(jnp.int8), scales


class Visible(NamedTuple):
    """What one token attends to in the caches of its prefix and of its own sequence.

    Attributes:
      prefix: mask of the prefix; None: all of it.
      positions: positions of its own cache to read; None: all.
      mask: mask of these positions; must be False at unwritten positions.
    """

    prefix: Bool[Array, "prefix"] | None
    positions: Int[Array, "k"] | None
    mask: Bool[Array, "k"]


def attend_to_caches(
    q: Float[Array, "b n h"], prefixes: tuple[KVCache, ...], cache: KVCache, visible: Visible
) -> Float[Array, "b n h"]:
    """Computes attention of one token per sequence to a prefix, which sequences share, and to its own sequence.

    Both parts have one softmax. So the keys of a prefix are read once for all sequences that share it, as a product of
    matrices.

    Args:
      prefixes: caches of prefixes: row i belongs to `prefixes[i % len(prefixes)]`, within which each row serves as many
        consecutive sequences.
    """
    own = cache if visible.positions is None else cache.take(visible.positions)
    scores = jnp.concatenate([_of_prefixes(prefixes, KVCache.scores, q), own.scores(q)], axis=-1) * q.shape[-1] ** -0.5
    length = prefixes[0].length
    prefix_mask = jnp.ones(length, bool) if visible.prefix is None else visible.prefix
    mask = jnp.concatenate([prefix_mask, visible.mask])
    weights = jax.nn.softmax(jnp.where(mask[None, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
    shared = _weigh_prefixes(prefixes, weights[..., :length], q.dtype)
    return (shared + own.weigh(weights[..., length:], q.dtype)).astype(q.dtype)


def attend_to_prefixes(q: Float[Array, "b n h"], prefixes: tuple[KVCache, ...]) -> Float[Array, "b n h"]:
    """Computes attention of one token per sequence to prefixes alone, as cross-attention does; see `attend_to_caches`."""
    weights = jax.nn.softmax(_of_prefixes(prefixes, KVCache.scores, q) * q.shape[-1] ** -0.5, axis=-1)
    return _weigh_prefixes(prefixes, weights, q.dtype).astype(q.dtype)


def _of_prefixes(prefixes: tuple[KVCache, ...], function: Callable, x: Float[Array, "b n m"]) -> Float[Array, "b n k"]:
    """Computes `function(prefix, rows)` for the rows of each prefix; row i belongs to `prefixes[i % len(prefixes)]`."""
    by_kind = x.reshape(-1, len(prefixes), *x.shape[1:])
    parts = [function(prefix, by_kind[:, kind]) for kind, prefix in enumerate(prefixes)]
    return jnp.stack(parts, axis=1).reshape(*x.shape[:2], -1)


def _weigh_prefixes(prefixes: tuple[KVCache, ...], weights: Float32[Array, "b n length"], dtype: DTypeLike):
    return _of_prefixes(prefixes, lambda prefix, w: prefix.weigh(w, dtype), weights)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Kernels: `qkv` [width, 3, heads, head_dim], `out` [heads, head_dim, width].

    With fewer `kv_heads` than heads, groups of consecutive heads share keys and values (arXiv 2305.13245), and `q` [width,
    heads, head_dim] and `kv` [width, 2, kv_heads, head_dim] take the place of `qkv`.

    The input has shape [batch, length, width] or [batch * length, width] (see `nn_jax.transformer.Block`).

    Attributes:
      causal: whether tokens attend only to themselves and to earlier tokens.
      float8: whether both products of parameters are of float8 numbers; see `nn_jax.float8`.
      bias: whether both products have biases.
      key_bias: whether keys have a bias; otherwise queries and values have the parameter `qv_bias` [2, heads, head_dim].
      norm_eps: epsilon of a layer norm before the output projection (arXiv 2210.06423); None: there is no such norm.
      qk_norm_eps: epsilon of layer norms of the queries and keys of each head (arXiv 2302.05442); None: there are none.
      kv_heads: number of heads of keys and values; 0: `heads`.
    """

    width: int
    heads: int
    std: float
    out_std: float
    causal: bool
    dtype: DTypeLike
    float8: bool = False
    bias: bool = True
    key_bias: bool = True
    norm_eps: float | None = None
    qk_norm_eps: float | None = None
    kv_heads: int = 0

    def setup(self):
        """Makes the layers and parameters."""
        head_dim, options = self.width // self.heads, {"float8": self.float8, "bias": self.bias}
        axes = ("embed", "qkv", "heads", "head_dim")
        if self.kv_heads in (0, self.heads):
            joint = options | {"bias": self.bias and self.key_bias}
            self.qkv = Dense((3, self.heads, head_dim), axes, self.std, self.dtype, **joint)
        else:
            self.q = Dense((self.heads, head_dim), ("embed", "heads", "head_dim"), self.std, self.dtype, **options)
            self.kv = Dense((2, self.kv_heads, head_dim), axes, self.std, self.dtype, **options)
        if self.bias and not self.key_bias:
            init = with_axis_names(nn.initializers.zeros_init(), *axes[1:])
            self.qv_bias = self.param("qv_bias", init, (2, self.heads, head_dim))
        if self.norm_eps is not None:
            self.norm = layer_norm(self.norm_eps, self.dtype, None)
        if self.qk_norm_eps is not None:
            self.q_norm, self.k_norm = (layer_norm(self.qk_norm_eps, self.dtype, None) for _ in "qk")
        axes = ("heads", "head_dim", "embed")
        self.out = Dense((self.width,), axes, self.out_std, self.dtype, inputs=2, **options)

    def __call__(
        self,
        x: Float[Array, "... width"],
        batch: int,
        attentions: tuple[Callable, ...] = (),
        index: int | Int[Array, ""] = 0,
        mask: Bool[Array, "..."] | None = None,
        rotation: Float[Array, "#b t pairs 2"] | None = None,
    ):
        """Computes attention by `attentions[index]`, a function `(q, k, v) -> y`, or by `attend` with `mask` if none.

        Queries and keys are turned by `rotation`, if there is one; see `nn_jax.rotary`.
        """
        return self._merge(self._attend(*self._project(x, batch, rotation), attentions, index, mask), x)

    def prefill(
        self,
        x: Float[Array, "... width"],
        batch: int,
        cache: KVCache,
        attentions: tuple[Callable, ...] = (),
        index: int | Int[Array, ""] = 0,
        rotation: Float[Array, "#b t pairs 2"] | None = None,
        mask: Bool[Array, "b t"] | None = None,
    ):
        """Computes attention for the first tokens of a sequence, and their KV cache; others attend to those of `mask`."""
        q, k, v = self._project(x, batch, rotation)
        filled = cache.write(k, v, 0)
        if mask is not None:
            filled, mask = filled._replace(mask=mask[:, None]), or_itself(mask)
        return self._merge(self._attend(q, k, v, attentions, index, mask), x), filled

    def decode_step(
        self,
        x: Float[Array, "... width"],
        batch: int,
        prefixes: tuple[KVCache, ...],
        cache: KVCache,
        position: Int[Array, ""],
        visible: Visible,
        rotation: Float[Array, "#b 1 pairs 2"] | None = None,
    ):
        """Computes attention for the token at `position` after the prefix, and the updated cache of its sequence."""
        q, k, v = self._project(x, batch, rotation)
        cache = cache.write(k, v, position)
        return self._merge(attend_to_caches(q[:, 0], prefixes, cache, visible)[:, None], x), cache

    def _attend(self, q, k, v, attentions: tuple[Callable, ...], index: int | Int[Array, ""], mask=None):
        if k.shape[2] < self.heads:
            k, v = (jnp.repeat(part, self.heads // self.kv_heads, axis=2) for part in (k, v))
        if not attentions:
            return attend(q, k, v, mask=mask, causal=self.causal)
        if len(attentions) == 1 or isinstance(index, int):
            return attentions[index if isinstance(index, int) else 0](q, k, v)
        return jax.lax.switch(index, attentions, q, k, v)

    def _project(self, x, batch: int, rotation=None):
        """Computes queries, keys and values [B, T, N, H]."""
        q, k, v = self._multiply(x, batch)
        if self.qk_norm_eps is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)

    def _multiply(self, x, batch: int):
        if self.kv_heads not in (0, self.heads):
            q, kv = self.q(x), self.kv(x)
            return tuple(part.reshape(batch, -1, *part.shape[-2:]) for part in (q, kv[..., 0, :, :], kv[..., 1, :, :]))
        if platform() == "tpu":  # XLA would copy each of three parts of a joint product to another layout
            q, k, v = (x.reshape(batch, -1, *x.shape[-2:]) for x in self.qkv.unstacked(x))
        else:
            qkv = self.qkv(x)
            qkv = qkv.reshape(batch, -1, *qkv.shape[-3:])
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # (B, T, N, H)
        if self.bias and not self.key_bias:
            q, v = add_parameter(q, self.qv_bias[0]), add_parameter(v, self.qv_bias[1])
        return q, k, v

    def _merge(self, y, x):
        """Applies the output projection to the heads `y`, in the shape of `x`."""
        if self.norm_eps is not None:
            y = self.norm(y.reshape(x.shape)).reshape(y.shape)
        return self.out(y.reshape(*x.shape[:-1], *y.shape[-2:]))


class Context(NamedTuple):
    """Tokens to which other tokens cross-attend, and the mask of those that count; None: all."""

    tokens: Float[Array, "batch m width"]
    mask: Bool[Array, "batch m"] | None = None


class CrossAttention(nn.Module):
    """Multi-head cross-attention. Kernels: `q`, `k`, `v` [width, heads, head_dim], `out` [heads, head_dim, features].

    Heads divide the width of the queries; keys may have another width.

    Attributes:
      width: width of the queries.
      features: width of the output.
      out_dtype: dtype of the output; see `Dense`.
      bias, float8: see `SelfAttention`.
    """

    width: int
    heads: int
    features: int
    dtype: DTypeLike
    out_dtype: DTypeLike | None = None
    bias: bool = True
    float8: bool = False

    def setup(self):
        """Makes the layers and parameters."""
        shape, axes, std = (self.heads, self.width // self.heads), ("embed", "heads", "head_dim"), self.width**-0.5
        options = {"bias": self.bias, "float8": self.float8}
        self.q = Dense(shape, axes, std, self.dtype, **options)
        self.k = Dense(shape, axes, std, self.dtype, **options)
        self.v = Dense(shape, axes, std, self.dtype, **options)
        axes, options = ("heads", "head_dim", "embed"), {"inputs": 2, "out_dtype": self.out_dtype} | options
        self.out = Dense((self.features,), axes, std, self.dtype, **options)

    def __call__(
        self, queries: Float[Array, "... width"], context: Context, batch: int | None = None
    ) -> Float[Array, "... features"]:
        """Computes attention of queries [batch, n, width], or [batch * n, width], to a context."""
        q = self.q(queries)
        mask = None if context.mask is None else context.mask[:, None, None]
        heads = q.reshape(batch or q.shape[0], -1, *q.shape[-2:])
        y = attend(heads, self.k(context.tokens), self.v(context.tokens), mask=mask)
        return self.out(y.reshape(q.shape))

    def fill(self, context: Context, dtype: DTypeLike) -> KVCache:
        """Computes the KV cache of a context, of a float dtype or int8."""
        k, v = self.k(context.tokens), self.v(context.tokens)
        cache = KVCache.empty(len(k), k.shape[1], *k.shape[2:], dtype).write(k, v, 0)
        return cache._replace(mask=None if context.mask is None else context.mask[:, None])

    def decode_step(self, x: Float[Array, "... width"], contexts: tuple[KVCache, ...]):
        """Computes attention of one token per sequence to the caches of `fill`; see `attend_to_caches`."""
        q = self.q(x)
        return self.out(attend_to_prefixes(q.reshape(-1, *q.shape[-2:]), contexts).reshape(q.shape))
