"""The transformer over codes: from a class, or from nothing, to the codes of an image, row by row.

codes [B, L], labels [B] -> logits [B, L, K]: what code number i is, given the label and the codes before it
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nn_jax import transformer
from nn_jax.layers import DTYPES, Dense, embed, layer_norm, named
from nn_jax.transformer import Cache, Transformer, causal_mask, empty_cache, unrolled
from train_jax.errors import ConfigError


class CodeTransformer(nn.Module):
    """Parameters: `conditions` [classes + 1, width] (the last row: no class), `tokens`, `positions`, `transformer`, `norm`,
    `head`.

    Attributes:
      size: of the vocabulary of codes.
      length: codes of an image it is trained on.
      classes: 0 for a model of images without labels.
      blocks: options of `Transformer`.
    """

    size: int
    length: int
    classes: int
    width: int
    heads: int
    depth: int
    dropout: float
    dtype: DTypeLike
    blocks: Mapping[str, Any]

    def setup(self):
        def table(name: str, rows: int, axis: str, std: float):
            return self.param(name, named(nn.initializers.normal(std), axis, "embed"), (rows, self.width))

        self.conditions = table("conditions", self.classes + 1, "classes", 0.02)
        self.tokens = table("tokens", self.size, "vocab", 0.02)
        self.positions = table("positions", self.length, "length", 0.01)
        self.drop = nn.Dropout(self.dropout)
        self.transformer = Transformer(
            self.width, self.depth, self.heads, dropout=self.dropout, dtype=self.dtype, **self.blocks
        )
        self.norm = layer_norm(1e-5, self.dtype, None)
        self.head = Dense((self.size,), ("embed", "vocab"), 0.02, self.dtype, bias=False, out_dtype=jnp.float32)

    def __call__(
        self, codes: Int[Array, "b l"], labels: Int[Array, "b"], deterministic: bool = True
    ) -> Float[Array, "b l k"]:
        """Logits, float32. `labels`: below 0 for none."""
        x = self._start(labels, codes[:, :-1])
        x = self.drop(x, deterministic=deterministic)
        x = self.transformer(x, causal_mask(x.shape[1]), deterministic)
        return self._logits(x)

    def begin(self, labels: Int[Array, "b"], codes: Int[Array, "b p"]) -> tuple[Float[Array, "b k"], tuple[Cache, ...]]:
        """Logits of the code after `codes` (there may be none), and a cache with room for the rest of an image."""
        x = self._start(labels, codes)
        cache = empty_cache(
            len(labels),
            self.length + 1,
            depth=self.depth,
            heads=self.heads,
            head_dim=self.width // self.heads,
            dtype=self.dtype,
        )
        x, cache = self.transformer(x, causal_mask(x.shape[1]), cache=cache)
        return self._logits(x[:, -1]), cache

    def step(
        self, codes: Int[Array, "b"], index: Int[Array, ""], cache: tuple[Cache, ...]
    ) -> tuple[Float[Array, "b k"], tuple[Cache, ...]]:
        """Logits of the code after code number `index`, and the cache with that one in it."""
        x = embed(self.tokens, codes) + jnp.take(self.positions, index + 1, axis=0, mode="clip")[None]
        seen = jnp.arange(self.length + 1) <= index + 1
        x = x[:, None].astype(self.dtype)
        x, cache = self.transformer(x, seen[None, None, None], cache=cache, position=index + 1)
        return self._logits(x[:, 0]), cache

    def _start(self, labels, codes):
        rows = jnp.where(labels < 0, self.classes, labels)
        x = jnp.concatenate([embed(self.conditions, rows, "classes")[:, None], embed(self.tokens, codes)], axis=1)
        x = (x + self.positions[None, : x.shape[1]]).astype(self.dtype)
        return nn.with_logical_constraint(x, ("batch", None, None))

    def _logits(self, x):
        return self.head(self.norm(x))


def defaults() -> ConfigDict:
    """Options of the transformer; in size those of a small GPT."""
    c = ConfigDict()
    c.classes = 0  # 0: images without labels; else labels 0 to classes - 1
    c.width = 512
    c.depth = 8
    c.heads = 8
    c.mlp_ratio = 4.0
    c.activation = "gelu"
    c.dropout = 0.1
    c.scan = True
    c.remat = "none"
    c.dtype = "float32"
    return c


def build(options: ConfigDict, size: int, length: int) -> CodeTransformer:
    """The module of resolved options, for `length` codes out of `size`. ConfigError for options that cannot be."""

    def require(condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"config.model.{key} = {options[key]!r}; it must be {allowed}")

    transformer.check(options.to_dict(), require)
    require(options.classes >= 0, "classes", "0 (no labels) or their number")
    blocks = {key: options[key] for key in ("mlp_ratio", "activation", "scan", "remat")}
    return CodeTransformer(
        size,
        length,
        options.classes,
        options.width,
        options.heads,
        options.depth,
        options.dropout,
        DTYPES[options.dtype],
        blocks,
    )


def for_sampling(module: CodeTransformer, params: Mapping[str, Any]) -> tuple[CodeTransformer, dict[str, Any]]:
    """The same model with its blocks unrolled, as a cache needs them."""
    blocks = {**module.blocks, "scan": False, "remat": "none"}
    return module.clone(blocks=blocks), {**params, "transformer": unrolled(params["transformer"])}


def shapes(module: CodeTransformer) -> dict[str, Any]:
    """The tree of the parameters' shapes."""
    codes, labels = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1,), jnp.int32)
    found = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), codes, labels)["params"])
    return jax.tree.map(lambda x: x.shape, found)
