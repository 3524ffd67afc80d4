"""DALL·E: text and picture as one stream of tokens, each told from those before it (arXiv 2102.12092, section 2).

text [B, N], codes [B, L] -> logits of text tokens 1 to N - 1, and of all L codes
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from dalle_jax import attention
from nn_jax import transformer
from nn_jax.layers import DTYPES, Dense, embed, layer_norm, named
from nn_jax.transformer import Cache, Transformer, empty_cache, unrolled
from train_jax.errors import ConfigError

VOCABULARIES = ("separate", "joint")
POSITIONS = ("axial", "learned")


class Dalle(nn.Module):
    """Parameters: `text_tokens`, `text_positions`, `tokens`, `rows` and `columns` (or `positions`), `transformer`, `norm`,
    `head`, and, for separate vocabularies, `text_head`.

    Attributes:
      text_size: of the text vocabulary, the pads of each position included.
      text_length: text tokens, pads included.
      size: of the vocabulary of codes.
      grid: rows and columns of codes.
      vocabulary: of the logits; "separate" for text and for codes, or "joint", codes after text.
      positions: of codes; "axial": a row's vector plus a column's; "learned": one for each place.
      patterns: see `dalle_jax.attention`.
      blocks: options of `Transformer`.
    """

    text_size: int
    text_length: int
    size: int
    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    dropout: float
    vocabulary: str
    positions: str
    patterns: tuple[str, ...]
    kernel: int
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def first_code(self) -> int:
        """The place of code 0 among the logits of a code."""
        return self.text_size if self.vocabulary == "joint" else 0

    def setup(self):
        def table(name: str, rows: int, axis: str, std: float):
            return self.param(name, named(nn.initializers.normal(std), axis, "embed"), (rows, self.width))

        self.text_tokens = table("text_tokens", self.text_size, "vocab", 0.02)
        self.text_places = table("text_positions", self.text_length, "length", 0.01)
        self.tokens = table("tokens", self.size, "vocab", 0.02)
        if self.positions == "axial":
            rows = table("rows", self.grid[0], "length", 0.01)
            columns = table("columns", self.grid[1], "length", 0.01)
            self.places = (rows[:, None] + columns[None]).reshape(self.length, self.width)
        else:
            self.places = table("positions", self.length, "length", 0.01)
        self.drop = nn.Dropout(self.dropout)
        self.transformer = Transformer(
            self.width, self.depth, self.heads, dropout=self.dropout, dtype=self.dtype, **self.blocks
        )
        self.norm = layer_norm(1e-5, self.dtype, None)

        self.head = self._projection(self.first_code + self.size)
        self.text_head = self._projection(self.text_size) if self.vocabulary == "separate" else self.head

    def _projection(self, features: int) -> Dense:
        return Dense((features,), ("embed", "vocab"), 0.02, self.dtype, bias=False, out_dtype=jnp.float32)

    def __call__(
        self, text: Int[Array, "b n"], codes: Int[Array, "b l"], deterministic: bool = True
    ) -> tuple[Float[Array, "b n1 t"], Float[Array, "b l k"]]:
        """Logits, float32: of the text tokens but the first, and of the codes.

        With a joint vocabulary both are over the whole vocabulary, that of the text first; code c is at `first_code + c`.
        """
        x = self._begin(text, codes[:, :-1])
        x = self.drop(x, deterministic=deterministic)
        x = self.norm(self.transformer(x, self._mask(x.shape[1]), deterministic))
        seen = self.text_length - 1
        return self.text_head(x[:, :seen]), self.head(x[:, seen:])

    def begin(self, text: Int[Array, "b n"]) -> tuple[Float[Array, "b k"], tuple[Cache, ...]]:
        """Logits of the first code (of codes alone, whatever the vocabulary), and a cache with room for all of them."""
        x = self._begin(text, None)
        cache = empty_cache(
            len(text),
            self.text_length + self.length,
            depth=self.depth,
            heads=self.heads,
            head_dim=self.width // self.heads,
            dtype=self.dtype,
        )
        x, cache = self.transformer(x, self._mask(x.shape[1]), cache=cache)
        return self._next(x[:, -1]), cache

    def step(
        self, codes: Int[Array, "b"], index: Int[Array, ""], cache: tuple[Cache, ...]
    ) -> tuple[Float[Array, "b k"], tuple[Cache, ...]]:
        """Logits of the code after code number `index`, and the cache with that one in it."""
        x = embed(self.tokens, codes) + self.places[index][None]
        place = self.text_length + index
        seen = self._mask(self.text_length + self.length)[..., place, :]
        x = x[:, None].astype(self.dtype)
        x, cache = self.transformer(x, seen[..., None, :], cache=cache, position=place)
        return self._next(x[:, 0]), cache

    def _begin(self, text, codes):
        x = embed(self.text_tokens, text) + self.text_places[None]
        if codes is not None:
            y = embed(self.tokens, codes) + self.places[None, : codes.shape[1]]
            x = jnp.concatenate([x, y], axis=1)
        return nn.with_logical_constraint(x.astype(self.dtype), ("batch", None, None))

    def _mask(self, length: int):
        """Of one pattern [1, 1, length, length]; of several [patterns, 1, 1, length, length]."""
        masks = [
            attention.mask(pattern, self.text_length, *self.grid, self.kernel)[None, None, :length, :length]
            for pattern in self.patterns
        ]
        return jnp.asarray(np.stack(masks) if self.blocks["kinds"] else masks[0])

    def _next(self, x):
        return self.head(self.norm(x))[:, self.first_code :]


def defaults() -> ConfigDict:
    """Options of the model; in size those of a small GPT."""
    c = ConfigDict()
    c.text_length = 64  # tokens of a caption, marks and pads included
    c.width = 512
    c.depth = 8
    c.heads = 8
    c.mlp_ratio = 4.0
    c.activation = "gelu"
    c.dropout = 0.1
    c.vocabulary = "separate"  # of the logits: text's and codes'; "joint", as in the paper: one of both
    c.positions = "axial"  # of codes: a row's vector and a column's; "learned": one a place
    c.attention = ("dense",)  # of the blocks in turn: dense, row, column, conv
    c.last_attention = ""  # of the last block, if another
    c.kernel = 11  # side of conv's neighbourhood
    c.scan = True
    c.remat = "none"
    c.dtype = "float32"
    return c


def build(options: ConfigDict, text_size: int, size: int, grid: tuple[int, int]) -> Dalle:
    """The module of resolved options, for texts of `text_size` tokens and a grid of codes out of `size`.

    Raises ConfigError for options that cannot be.
    """

    def require(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.model.{key} = {options[key]!r}; it must be {allowed}")

    require(options.text_length >= 2, "text_length", "at least 2")
    transformer.check(options.to_dict(), require)
    require(options.vocabulary in VOCABULARIES, "vocabulary", f"one of {', '.join(VOCABULARIES)}")
    require(options.positions in POSITIONS, "positions", f"one of {', '.join(POSITIONS)}")
    known = f"of {', '.join(attention.PATTERNS)}"
    patterns = tuple(options.attention)
    require(bool(patterns) and set(patterns) <= set(attention.PATTERNS), "attention", f"one or more {known}")
    require(options.last_attention in ("", *attention.PATTERNS), "last_attention", f'"" or one {known}')
    require(options.kernel >= 1 and options.kernel % 2 == 1, "kernel", "odd and positive")
    distinct, kinds = attention.kinds(patterns, options.last_attention, options.depth)
    blocks = {key: options[key] for key in ("mlp_ratio", "activation", "scan", "remat")}
    return Dalle(
        text_size=text_size,
        text_length=options.text_length,
        size=size,
        grid=grid,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        dropout=options.dropout,
        vocabulary=options.vocabulary,
        positions=options.positions,
        patterns=distinct,
        kernel=options.kernel,
        dtype=DTYPES[options.dtype],
        blocks=blocks | {"kinds": kinds if len(distinct) > 1 else ()},
    )


def for_sampling(module: Dalle, params: Mapping[str, Any]) -> tuple[Dalle, dict[str, Any]]:
    """The same model with its blocks unrolled, as a cache needs them."""
    blocks = {**module.blocks, "scan": False, "remat": "none"}
    return module.clone(blocks=blocks), {**params, "transformer": unrolled(params["transformer"])}


def shapes(module: Dalle) -> dict[str, Any]:
    """The tree of the parameters' shapes."""
    text, codes = jnp.zeros((1, module.text_length), jnp.int32), jnp.zeros((1, module.length), jnp.int32)
    found = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), text, codes)["params"])
    return jax.tree.map(lambda x: x.shape, found)
