"""Autoregressive transformer over image codes (arXiv 2012.09841, section 3.2; DALL-E, arXiv 2102.12092, section 2).

The sequence is a condition (a class, or the tokens of a text) followed by a grid of codes in reading order:

    condition [B, C], codes [B, L] -> logits of condition tokens 1 to C - 1 [B, C - 1, T], and of all L codes [B, L, K]

A condition may also be outputs of another network: `CodeTransformer.condition` is the module that embeds it.

With an encoder (`encoder_depth`), the sequence is a start vector and the codes, which cross-attend to the encoded condition,
as in BART (arXiv 1910.13461) and dalle-mini.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nn_jax.attention import Context, KVCache, Visible, or_itself
from nn_jax.attention_patterns import attended_codes, attention_mask
from nn_jax.layers import ACTIVATIONS, NORMS, Dense, embedding_lookup, with_axis_names
from nn_jax.rotary import grid_angles, turns
from nn_jax.sparse_attention import attend_in_pattern
from nn_jax.transformer import Transformer, unstack_blocks


class TokenEmbedding(nn.Module):
    """Sum of token and position embeddings. Parameters: `tokens`, and `positions`, or if axial `rows` and `columns`.

    Without `has_positions`, embeddings of tokens alone.

    Attributes:
      grid: numbers of rows and columns of tokens; (1, length) for a sequence.
      axial: whether a position embedding is the sum of a row and a column embedding (arXiv 1912.12180).
    """

    vocabulary_size: int
    grid: tuple[int, int]
    width: int
    axial: bool = False
    has_positions: bool = True

    def setup(self):
        """Makes the layers and parameters."""

        def table(name: str, rows: int, axis: str, std: float):
            init = with_axis_names(nn.initializers.normal(std), axis, "embed")
            return self.param(name, init, (rows, self.width))

        rows, columns = self.grid
        self.tokens = table("tokens", self.vocabulary_size, "vocab", 0.02)
        if self.axial:
            by_row, by_column = table("rows", rows, "length", 0.01), table("columns", columns, "length", 0.01)
            self.positions = (by_row[:, None] + by_column[None]).reshape(rows * columns, self.width)
        elif self.has_positions:
            self.positions = table("positions", rows * columns, "length", 0.01)

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.grid[0] * self.grid[1]

    @property
    def row(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a sequence of tokens."""
        return jax.ShapeDtypeStruct((self.length,), jnp.int32)

    def __call__(
        self, ids: Int[Array, "b n"] | Float[Array, "b n v"], start: int | Int[Array, ""] = 0
    ) -> Float[Array, "b n width"]:
        """Embeds consecutive tokens from position `start` on, in float32; of distributions over tokens, the mean vectors."""
        vectors = embedding_lookup(self.tokens, ids) if ids.ndim == 2 else ids @ self.tokens
        if not self.has_positions:
            return vectors
        return vectors + jax.lax.dynamic_slice_in_dim(self.positions, start, ids.shape[1])[None]


class FeatureEmbedding(nn.Module):
    """Embeds features of a text by an MLP without biases (LlamaGen, arXiv 2406.06525, section 3.2).

    Parameters: `fc1`, `fc2`, and `null`, the features of no text. A row [length, features + 1] of a condition holds the
    features and, last, the state of each position: 1 for a token, 0 for padding, -1 for a token of a dropped text.
    """

    length: int
    features: int
    width: int
    dtype: DTypeLike

    def setup(self):
        """Makes the layers and parameters."""
        init = with_axis_names(nn.initializers.normal(self.features**-0.5), "length", "proj")
        self.null = self.param("null", init, (self.length, self.features))
        self.fc1 = Dense((self.width,), ("proj", "embed"), 0.02, self.dtype, bias=False)
        self.fc2 = Dense((self.width,), ("embed", "proj"), 0.02, self.dtype, bias=False)

    @property
    def row(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a condition."""
        return jax.ShapeDtypeStruct((self.length, self.features + 1), jnp.float32)

    def mask(self, rows: Float[Array, "b n f1"]) -> Bool[Array, "b n"]:
        """Returns the mask of tokens; False: padding, to which nothing attends."""
        return rows[..., -1] != 0

    def __call__(self, rows: Float[Array, "b n f1"]) -> Float[Array, "b n width"]:
        """Embeds rows of features; of a dropped row (-1 in the last column) the learned null features."""
        x = jnp.where(rows[..., -1:] < 0, self.null[None], rows[..., :-1])
        return self.fc2(ACTIVATIONS["gelu_tanh"](self.fc1(x))).astype(jnp.float32)


class CodeTransformer(nn.Module):
    """Autoregressive transformer over a condition and a grid of codes.

    Parameters: `condition` and `codes` (see `TokenEmbedding`), `transformer`, `norm`, `head`; `condition_head` if condition
    tokens are predicted with a separate vocabulary; with an encoder `encoder`, `encoder_norm` and `start`, a token; norms of
    embeddings are `code_norm` and, of those that the encoder reads, `condition_norm`; with `head_norm` `second_norm`.

    Attributes:
      condition: module that embeds a condition as vectors [B, C, width] with their positions: a `TokenEmbedding` of tokens
        [B, C], or another one of any arrays, which has the attribute `length`, C. Only tokens can be predicted. If it has a
        method `mask`, to which positions others attend, all blocks are dense.
      num_codes: vocabulary size of codes.
      grid: numbers of rows and columns of codes.
      blocks: further options of `Transformer`.
      predicts_condition: whether the model computes logits of condition tokens 1 to C - 1, as in DALL-E.
      joint_vocabulary: whether logits are over condition tokens and codes together, codes last, as in DALL-E's paper.
      axial: whether codes have axial position embeddings; see `TokenEmbedding`.
      rotary: whether queries and keys of codes are rotated by their row and column instead (`nn_jax.rotary`). Queries and
        keys of the prefix are zero, as in LlamaGen: all attend to it evenly.
      patterns: distinct attention patterns of the blocks; see `nn_jax.attention_patterns`. `blocks["attention_index"]`
        assigns the patterns to blocks.
      conv_window: side of the window of the patterns "conv", "window" and "torus".
      shifted_patterns: whether patterns take the last position of the prefix for the first code, and each code for the next.
      cache_dtype: dtype of KV caches: None for `dtype`, or int8, which has a relative error of 1/254 of the largest
        component of each key and value.
      embedding_norm: whether embeddings are normalised before the first block.
      encoder_depth: number of blocks of the condition's encoder; 0: the condition is a part of the sequence. The options of
        `blocks` hold for both.
      padding: condition token to which neither the encoder nor codes attend; None: they attend to all.
      head_norm: whether logits are of a second norm of `norm`'s output.
      head_bias: whether logits have biases.
    """

    condition: nn.Module
    num_codes: int
    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    dropout: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]
    predicts_condition: bool = False
    joint_vocabulary: bool = False
    axial: bool = False
    patterns: tuple[str, ...] = ("dense",)
    conv_window: int = 11
    shifted_patterns: bool = False
    cache_dtype: DTypeLike | None = None
    embedding_norm: bool = False
    encoder_depth: int = 0
    padding: int | None = None
    head_norm: bool = False
    head_bias: bool = False
    rotary: bool = False

    @property
    def condition_length(self) -> int:
        """Number of condition tokens."""
        return self.condition.length

    @property
    def prefix_length(self) -> int:
        """Number of positions of the sequence before the codes."""
        return 1 if self.encoder_depth else self.condition_length

    @property
    def condition_size(self) -> int:
        """Vocabulary size of condition tokens."""
        return self.condition.vocabulary_size

    @property
    def length(self) -> int:
        """Number of codes of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def code_offset(self) -> int:
        """Index of code 0 in the logits."""
        return self.condition_size if self.joint_vocabulary else 0

    def setup(self):
        """Makes the layers and parameters."""
        self.codes = TokenEmbedding(self.num_codes, self.grid, self.width, self.axial, not self.rotary)
        self.drop = nn.Dropout(self.dropout)
        options = {"dropout": self.dropout, "dtype": self.dtype, **self.blocks}
        has_encoder = self.encoder_depth > 0
        make_norm = functools.partial(NORMS[options.get("norm", "layer")], 1e-5, self.dtype, None)
        self.transformer = Transformer(self.width, self.depth, self.heads, **options, causal=True, cross=has_encoder)
        self.norm = make_norm()
        if self.head_norm:
            self.second_norm = make_norm()
        if has_encoder:
            options["attention_index"] = ()
            self.encoder = Transformer(self.width, self.encoder_depth, self.heads, **options)
            self.encoder_norm = make_norm()
            self.start = TokenEmbedding(1, (1, 1), self.width)
        if self.embedding_norm:
            self.code_norm = make_norm()
            if has_encoder:
                self.condition_norm = make_norm()

        def projection(features: int) -> Dense:
            options = {"bias": self.head_bias, "out_dtype": jnp.float32}
            return Dense((features,), ("embed", "vocab"), 0.02, self.dtype, **options)

        self.head = projection(self.code_offset + self.num_codes)
        if self.predicts_condition and not self.joint_vocabulary:
            self.condition_head = projection(self.condition_size)

    def __call__(
        self,
        condition: Any,
        codes: Int[Array, "b l"] | Float[Array, "b l num_codes"],
        deterministic: bool = True,
    ) -> tuple[Float[Array, "b c1 t"] | None, Float[Array, "b l k"]]:
        """Computes float32 logits `(condition_logits, code_logits)`. Codes may be distributions over codes.

        `condition_logits` are those of condition tokens 1 to C - 1, or None if the condition is not predicted. With a joint
        vocabulary both are over condition tokens and codes; code k has index `code_offset + k`.
        """
        x, context = self._embed(condition, codes[:, :-1], deterministic)
        x = self.drop(x, deterministic=deterministic)
        rotation, mask = self._rotation(0, x.shape[1]), self._mask(condition, x.shape[1])
        mask = None if mask is None else or_itself(mask)
        x = self.transformer(x, self._attentions(), deterministic, mask, context, rotation)
        x = self._final_norm(x)
        last = self.prefix_length - 1  # this position predicts the first code
        condition_logits = None
        if self.predicts_condition:
            head = self.head if self.joint_vocabulary else self.condition_head
            condition_logits = head(x[:, :last])
        return condition_logits, self.head(x[:, last:])

    def prefill(
        self, condition: Any, codes: Int[Array, "b p"]
    ) -> tuple[Float[Array, "b k"], tuple[KVCache, ...]]:
        """Computes the logits of the next code from condition and previous `codes` (possibly none), and their KV caches.

        Logits are over codes only. `decode_step` uses the caches as prefixes.
        """
        x, context = self._embed(condition, codes)
        caches = self.transformer.empty_caches(len(x), x.shape[1], self.cache_dtype)
        rotation, mask = self._rotation(0, x.shape[1]), self._mask(condition, x.shape[1])
        x, caches = self.transformer.prefill(x, caches, self._attentions(), context, rotation, mask)
        return self._code_logits(x[:, -1]), caches

    def empty_caches(self, batch: int) -> tuple[KVCache, ...]:
        """Makes the caches of sequences without a code after the prefix; `KVCache.grow` makes room for codes."""
        return self.transformer.empty_caches(batch, 0, self.cache_dtype)

    def decode_step(
        self,
        codes: Int[Array, "b"],
        index: Int[Array, ""],
        prefixes: tuple[tuple[KVCache, ...], ...],
        caches: tuple[KVCache, ...],
    ) -> tuple[Float[Array, "b k"], tuple[KVCache, ...]]:
        """Computes the logits of the next code from `codes` at position `index`, and the updated KV caches.

        Args:
          prefixes: for each block, caches of the condition and the first codes; see `nn_jax.attention.attend_to_caches`.
          caches: for each block, the cache of the codes after the prefix, with room for the code at `index`.
        """
        x = self._normalize(self.codes(codes[:, None], index)).astype(self.dtype)
        num_known = prefixes[0][0].length - self.prefix_length
        visible = tuple(self._visible(p, index, num_known, caches[0].length) for p in self.patterns)
        rotation = self._rotation(self.prefix_length + index, 1)
        x, caches = self.transformer.decode_step(x, prefixes, caches, index - num_known, visible, rotation)
        return self._code_logits(x[:, 0]), caches

    def _visible(self, pattern: str, index: Int[Array, ""], num_known: int, length: int) -> Visible:
        """Returns what the code at `index` attends to, of a prefix with `num_known` codes and of a cache of `length`."""
        attended, offset = attended_codes(pattern, self.grid, self.conv_window), int(self.shifted_patterns)
        if attended is None:
            return Visible(None, None, jnp.arange(length) <= index - num_known)
        prefix_mask = None
        if num_known or offset:
            mask = attention_mask(pattern, self.prefix_length - offset, self.grid, self.conv_window)
            prefix_mask = jnp.asarray(mask[self.prefix_length :, : self.prefix_length + num_known])[index]
        positions = jnp.asarray(attended)[offset:][index] - offset - num_known
        return Visible(prefix_mask, positions, positions >= 0)

    def _embed(self, condition, codes, deterministic: bool = True):
        """Embeds condition and codes as one sequence. With an encoder, also returns the context of the codes."""
        prefix, context = self.condition(condition), None
        if self.encoder_depth:
            context = self._encode(prefix, condition, deterministic)
            prefix = self.start(jnp.zeros((len(codes), 1), jnp.int32))
        x = self._normalize(jnp.concatenate([prefix, self.codes(codes)], axis=1))
        return nn.with_logical_constraint(x.astype(self.dtype), ("batch", None, None)), context

    def _encode(self, x, tokens, deterministic: bool) -> Context:
        """Encodes the embedded tokens of a condition."""
        if self.embedding_norm:
            x = self.condition_norm(x)
        x = nn.with_logical_constraint(x.astype(self.dtype), ("batch", None, None))
        mask = None if self.padding is None else tokens != self.padding
        x = self.drop(x, deterministic=deterministic)
        x = self.encoder(x, (), deterministic, None if mask is None else mask[:, None, None])
        return Context(self.encoder_norm(x), mask)

    def _normalize(self, x):
        """Applies the norm of embeddings of the sequence, if there is one."""
        return self.code_norm(x) if self.embedding_norm else x

    def _attentions(self) -> tuple[Callable, ...]:
        """Returns the attention of each pattern; () if all blocks are dense."""
        if self.patterns == ("dense",):
            return ()
        length = self.prefix_length - self.shifted_patterns
        options = {"condition_length": length, "grid": self.grid, "window": self.conv_window}
        return tuple(functools.partial(attend_in_pattern, pattern=pattern, **options) for pattern in self.patterns)

    def _mask(self, condition, length: int) -> Bool[Array, "b length"] | None:
        """Returns the mask of the positions of a sequence to which others attend; None: all."""
        if not hasattr(self.condition, "mask"):
            return None
        padding = ((0, 0), (0, length - self.prefix_length))
        return jnp.pad(self.condition.mask(condition), padding, constant_values=True)

    def _rotation(self, start: int | Int[Array, ""], length: int) -> Float[Array, "1 length pairs 2"] | None:
        """Returns the rotary positions of a part of the sequence, zero for the prefix; None if positions are embedded."""
        if not self.rotary:
            return None
        codes = turns(jnp.asarray(grid_angles(self.grid, self.width // self.heads)))
        table = jnp.pad(codes, ((self.prefix_length, 0), (0, 0), (0, 0)))
        return jax.lax.dynamic_slice_in_dim(table, start, length)[None]

    def _code_logits(self, x):
        """Computes logits over codes only."""
        return self.head(self._final_norm(x))[:, self.code_offset :]

    def _final_norm(self, x):
        """Normalises the output of the last block."""
        x = self.norm(x)
        return self.second_norm(x) if self.head_norm else x


UNROLLED = {"scan": False, "remat": "none", "float8": False}  # `CodeTransformer.blocks` for decoding


def unroll_for_decoding(module: CodeTransformer, params: Mapping[str, Any]) -> tuple[CodeTransformer, dict[str, Any]]:
    """Returns the model and its parameters with unrolled blocks, which KV caches require, and without float8.

    The model can be hashed, as keys of compiled programs require.
    """
    stacks = [name for name in ("encoder", "transformer") if name in params]
    params = {**params, **{name: unstack_blocks(params[name]) for name in stacks}}
    return module.clone(blocks=flax.core.freeze({**module.blocks, **UNROLLED})), params


def shapes(module: CodeTransformer) -> dict[str, Any]:
    """Returns the tree of parameter shapes of a model whose condition is tokens or features."""
    row, codes = module.condition.row, jnp.zeros((1, module.length), jnp.int32)
    condition = jnp.zeros((1, *row.shape), row.dtype)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), condition, codes)["params"])
    return jax.tree.map(lambda x: x.shape, params)
