"""Pre-norm transformer (arXiv 1706.03762; pre-norm as in GPT-2) with scanned or unrolled blocks.

For autoregressive decoding, `prefill` and `decode_step` use KV caches. The results equal those of the full sequence.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nn_jax import attention as attention_lib
from nn_jax.attention import Context, CrossAttention, KVCache, SelfAttention, Visible, platform
from nn_jax.layers import ACTIVATIONS, NORMS, Dense
from nn_jax.mixed_precision import mixed_dot_general_p


def _products(primitive, *operands, **parameters) -> bool:
    """Returns whether "dots" saves a primitive's result: products of parameters, which have no batch axes, and attention."""
    if primitive is mixed_dot_general_p:
        return not any(parameters["dimension_numbers"][1])
    is_saved = jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention_lib.NAME),
    )
    return is_saved(primitive, *operands, **parameters)


BRANCH_NORMS = ("none", "sandwich", "normformer", "inner", "double", "output", "post")
REMAT = {"none": None, "full": jax.checkpoint_policies.nothing_saveable, "dots": _products}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the parameters of a `Transformer` with `scan=True` to those with `scan=False`."""
    if "blocks" not in params:
        return dict(params)
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)}


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches.

    With other `branch_norms`, norms have further or other places.

    If `cross`, a third branch between them attends to a context.

    On a CPU the block computes on tokens flattened to [batch * length, width]. With reshapes between the matrix products,
    XLA's CPU compiler would recompute the gradient of the residual stream for each use, at a cost quadratic in the depth of
    unrolled blocks (a fifth to a third of a training step at depth 12). Other devices keep [batch, length, width].

    Attributes: see `Transformer`.
    """

    width: int
    heads: int
    mlp_dim: int
    activation: str
    eps: float
    std: float
    out_std: float
    dropout: float
    causal: bool
    dtype: DTypeLike
    float8: bool = False
    branch_norms: str = "none"
    gated: bool = False
    bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    cross: bool = False
    norm: str = "layer"
    kv_heads: int = 0

    def setup(self):
        """Makes the layers and parameters."""
        options = {"dtype": self.dtype, "float8": self.float8, "bias": self.bias}
        self.norm1 = self._norm()
        sizes = self.width, self.heads, self.std, self.out_std
        inner = {"key_bias": self.key_bias, "norm_eps": self.eps if self.branch_norms == "inner" else None}
        inner["qk_norm_eps"] = self.eps if self.qk_norm else None
        self.attention = SelfAttention(*sizes, self.causal, kv_heads=self.kv_heads, **options, **inner)
        if self.cross:
            self.cross_norm = self._norm()
            self.cross_attention = CrossAttention(self.width, self.heads, self.width, **options)
        self.norm2 = self._norm()
        self.mlp_in = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, **options)
        if self.gated:
            self.mlp_gate = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, **options)
        self.mlp_out = Dense((self.width,), ("mlp", "embed"), self.out_std, **options)
        self.drop = nn.Dropout(self.dropout)
        if self._has_output_norms:
            self.attention_norm = self._norm()
            if self.cross:
                self.cross_attention_norm = self._norm()
        if self._has_output_norms or self.branch_norms in ("inner", "double"):
            self.mlp_norm = self._norm()

    @property
    def _has_output_norms(self) -> bool:
        """Whether the outputs of attention are normalised."""
        return self.branch_norms in ("sandwich", "normformer")

    def _norm(self) -> nn.Module:
        return NORMS[self.norm](self.eps, self.dtype, None)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        attentions: tuple[Callable, ...] = (),
        index: int | Int[Array, ""] = 0,
        deterministic: bool = True,
        mask: Bool[Array, "..."] | None = None,
        context: Context | None = None,
        rotation: Float[Array, "#batch length pairs 2"] | None = None,
    ):
        """Applies the block to sequences; arguments are as in `Transformer`."""

        def attention(y):
            return self.attention(y, x.shape[0], attentions, index, mask, rotation), None

        def cross_attention(y):
            return self.cross_attention(y, context, x.shape[0])

        return self._residual(x, attention, cross_attention, deterministic)[0]

    def prefill(
        self,
        x: Float[Array, "batch length width"],
        cache: KVCache,
        attentions: tuple[Callable, ...] = (),
        index: int | Int[Array, ""] = 0,
        context: Context | None = None,
        rotation: Float[Array, "#batch length pairs 2"] | None = None,
        mask: Bool[Array, "batch length"] | None = None,
    ):
        """Applies the block and puts keys and values into `cache`; returns the outputs and the cache."""

        def attention(y):
            return self.attention.prefill(y, len(x), cache, attentions, index, rotation, mask)

        def cross_attention(y):
            return self.cross_attention(y, context, len(x))

        x, filled = self._residual(x, attention, cross_attention)
        if self.cross:
            filled = filled._replace(context=self.cross_attention.fill(context, cache.keys.dtype))
        return x, filled

    def decode_step(
        self,
        x: Float[Array, "batch 1 width"],
        prefixes: tuple[KVCache, ...],
        cache: KVCache,
        position: Int[Array, ""],
        visible: Visible,
        rotation: Float[Array, "#batch 1 pairs 2"] | None = None,
    ):
        """Applies the block to the next position of each sequence; returns the outputs and the cache."""

        def attention(y):
            return self.attention.decode_step(y, len(x), prefixes, cache, position, visible, rotation)

        def cross_attention(y):
            return self.cross_attention.decode_step(y, tuple(prefix.context for prefix in prefixes))

        return self._residual(x, attention, cross_attention)

    def _residual(self, x, attention: Callable, cross_attention: Callable, deterministic: bool = True):
        """Applies the block with given functions: attention `y -> (y, cache)`, and cross-attention `y -> y` if `cross`."""
        shape = x.shape
        as_rows = platform() == "cpu"
        if as_rows:
            x = x.reshape(-1, self.width)

        def read(x, norm):
            return x if self.branch_norms in ("output", "post") else norm(x)

        def add(x, y, norm):
            y = norm(y) if self.branch_norms == "output" else y
            x = x + self.drop(y, deterministic=deterministic)
            return norm(x) if self.branch_norms == "post" else x

        has_norms = self._has_output_norms
        y, cache = attention(read(x, self.norm1))
        x = add(x, self.attention_norm(y) if has_norms else y, self.norm1)
        if self.cross:
            y = cross_attention(read(x, self.cross_norm))
            x = add(x, self.cross_attention_norm(y) if has_norms else y, self.cross_norm)
        x = add(x, self._mlp(read(x, self.norm2), ("batch", "mlp") if as_rows else ("batch", None, "mlp")), self.norm2)
        return nn.with_logical_constraint(x.reshape(shape), ("batch", None, None)), cache

    def _mlp(self, x, axes: tuple[str | None, ...]):
        """Applies the MLP, whose hidden features have logical `axes`, with its norm."""
        activation = ACTIVATIONS[self.activation]
        x = self.mlp_norm(x) if self.branch_norms == "double" else x
        y = activation(self.mlp_gate(x)) * self.mlp_in(x) if self.gated else activation(self.mlp_in(x))
        y = nn.with_logical_constraint(y, axes)
        if self.branch_norms in ("normformer", "inner"):
            return self.mlp_out(self.mlp_norm(y))
        y = self.mlp_out(y)
        return self.mlp_norm(y) if self.branch_norms == "sandwich" else y


class Transformer(nn.Module):
    """Transformer of `depth` blocks, initialised like CLIP (openai/CLIP, `initialize_parameters`).

    Attributes:
      mlp_ratio: ratio of the MLP's width to the width of the residual stream.
      activation: key of `nn_jax.layers.ACTIVATIONS`.
      eps: epsilon of the layer norms; 1e-5 in CLIP.
      causal: whether tokens attend only to themselves and to earlier tokens.
      scan: whether blocks are scanned, with parameters stacked under `blocks`; otherwise parameters are `block_<i>`.
      remat: rematerialisation: "none", "full" (recomputes each block in the backward pass), "dots" (saves matrix products).
      float8: whether the blocks' products of parameters are of float8 numbers; see `nn_jax.float8`.
      attention_index: index of each block's attention among several; (): one for all blocks.
      branch_norms: norms of each block besides those of the inputs of branches: "none"; "sandwich", of the outputs of all
        branches (arXiv 2105.13290, section 2.4); "normformer", of the outputs of attention, and in the MLP before its last
        product (arXiv 2110.09456, without scales of heads and residuals); "inner", before the last products of
        self-attention and MLP (arXiv 2210.06423); "double", of the normalised input of the MLP (arXiv 2404.02132). Or the
        norms of branches have another place than their inputs: "output", their outputs (arXiv 2111.09883); "post", the sums
        of residual stream and output (arXiv 1706.03762).
      gated: whether the MLP is gated, activation(x W) * (x V) (arXiv 2002.05202).
      bias: whether products have biases.
      key_bias: whether keys have a bias, if products have biases.
      qk_norm: whether queries and keys of each head are normalised, before rotary positions (arXiv 2302.05442).
      cross: whether blocks attend to a context, after self-attention.
      norm: key of `nn_jax.layers.NORMS`, the type of all norms.
      kv_heads: number of heads of keys and values in self-attention; 0: `heads`. See `SelfAttention`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-5
    dropout: float = 0.0
    causal: bool = False
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    float8: bool = False
    attention_index: tuple[int, ...] = ()
    branch_norms: str = "none"
    gated: bool = False
    bias: bool = True
    key_bias: bool = True
    qk_norm: bool = False
    cross: bool = False
    norm: str = "layer"
    kv_heads: int = 0

    def setup(self):
        """Makes the layers and parameters."""
        if self.attention_index and len(self.attention_index) != self.depth:
            count = len(self.attention_index)
            raise ValueError(f"attention_index names the attention of {count} blocks; there are {self.depth}")
        block = Block
        if self.remat != "none":
            static = (2, 4) if self.scan else (2, 3, 4)  # attentions, index, deterministic
            block = nn.remat(Block, policy=REMAT[self.remat], static_argnums=static, prevent_cse=not self.scan)
        options = {
            "width": self.width,
            "heads": self.heads,
            "mlp_dim": round(self.mlp_ratio * self.width),
            "activation": self.activation,
            "eps": self.eps,
            "std": self.width**-0.5,
            "out_std": self.width**-0.5 * (2 * self.depth) ** -0.5,
            "dropout": self.dropout,
            "causal": self.causal,
            "dtype": self.dtype,
            "float8": self.float8,
            "branch_norms": self.branch_norms,
            "gated": self.gated,
            "bias": self.bias,
            "key_bias": self.key_bias,
            "qk_norm": self.qk_norm,
            "cross": self.cross,
            "norm": self.norm,
            "kv_heads": self.kv_heads,
        }
        if self.scan:
            self.blocks = block(**options)
        else:
            for index in range(self.depth):
                setattr(self, f"block_{index}", block(**options))

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        attentions: tuple[Callable, ...] = (),
        deterministic: bool = True,
        mask: Bool[Array, "..."] | None = None,
        context: Context | None = None,
        rotation: Float[Array, "#batch length pairs 2"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Applies all blocks.

        Args:
          attentions: functions `(q, k, v) -> y` of arrays [batch, length, heads, head_dim], of which `attention_index`
            assigns one to each block; (): attention to all tokens, or to itself and earlier ones if causal.
          mask: further restriction of the attention that () stands for; broadcasts to [batch, heads, length, length].
          context: what blocks cross-attend to, if `cross`.
          rotation: rotary positions of queries and keys; see `nn_jax.rotary`.

        Raises ValueError for a mask beside `attentions`, which have their own.
        """
        if attentions and mask is not None:
            raise ValueError("a mask restricts attention to all tokens: other attentions have masks of their own")
        indices = self._indices()
        if not self.scan:
            for number, index in enumerate(indices):
                x = getattr(self, f"block_{number}")(x, attentions, index, deterministic, mask, context, rotation)
            return x

        def apply(block, x, index):
            return block(x, attentions, index, deterministic, mask, context, rotation), None

        stack = nn.scan(
            apply,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(self.blocks, x, jnp.asarray(indices))[0]

    def empty_caches(self, batch: int, length: int, dtype: DTypeLike | None = None) -> tuple[KVCache, ...]:
        """Makes an empty KV cache of `length` tokens for each block, of the model's dtype or another, such as int8."""
        dtype, head_dim = self.dtype if dtype is None else dtype, self.width // self.heads
        empty = KVCache.empty(batch, length, self.kv_heads or self.heads, head_dim, dtype)
        return (empty,) * self.depth

    def prefill(
        self,
        x: Float[Array, "batch prefix width"],
        caches: tuple[KVCache, ...],
        attentions: tuple[Callable, ...] = (),
        context: Context | None = None,
        rotation: Float[Array, "#batch prefix pairs 2"] | None = None,
        mask: Bool[Array, "batch prefix"] | None = None,
    ) -> tuple[Float[Array, "batch prefix width"], tuple[KVCache, ...]]:
        """Applies all blocks to the first tokens of a sequence. Returns the output and their KV caches.

        Requires unrolled blocks (`scan=False`, parameters from `unstack_blocks`). `mask` is that of the tokens to which
        others attend, also later ones, by the caches. Other arguments are those of `__call__`; caches hold the keys and
        values of the context, too.
        """
        filled = []
        for number, (cache, index) in enumerate(zip(caches, self._indices(), strict=True)):
            x, cache = self._block(number).prefill(x, cache, attentions, index, context, rotation, mask)
            filled.append(cache)
        return x, tuple(filled)

    def decode_step(
        self,
        x: Float[Array, "batch 1 width"],
        prefixes: tuple[tuple[KVCache, ...], ...],
        caches: tuple[KVCache, ...],
        position: Int[Array, ""],
        visible: tuple[Visible, ...],
        rotation: Float[Array, "#batch 1 pairs 2"] | None = None,
    ) -> tuple[Float[Array, "batch 1 width"], tuple[KVCache, ...]]:
        """Applies all blocks to one token. Returns the output and the updated KV caches.

        Requires unrolled blocks (`scan=False`, parameters from `unstack_blocks`).

        Args:
          prefixes: for each block, the caches of the prefixes of the sequences; see `attend_to_caches`.
          caches: for each block, the cache of the tokens after the prefix.
          position: index of the token after the prefix.
          visible: what the token attends to, for each attention of `attention_index`, or one for all blocks.
          rotation: rotary position of the token.
        """
        filled = []
        for number, (prefix, cache, index) in enumerate(zip(prefixes, caches, self._indices(), strict=True)):
            x, cache = self._block(number).decode_step(x, prefix, cache, position, visible[index], rotation)
            filled.append(cache)
        return x, tuple(filled)

    def _block(self, index: int) -> Block:
        """Returns an unrolled block. Raises ValueError for scanned blocks."""
        if self.scan:
            raise ValueError("a KV cache needs unrolled blocks: scan=False, with parameters from `unstack_blocks`")
        return getattr(self, f"block_{index}")

    def _indices(self) -> tuple[int, ...]:
        """Returns the index of each block's attention."""
        return self.attention_index or (0,) * self.depth
