"""Pre-norm transformer blocks (arXiv 1706.03762; pre-norm as in GPT-2), stacked by `scan` or unrolled.

For autoregressive decoding, `prefill` and `decode_step` keep the keys and values of earlier tokens in a KV cache, so that a
token costs one row of each matrix product, and sees exactly what it would see in a whole sequence.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from nn_jax.attention import KVCache, SelfAttention
from nn_jax.layers import ACTIVATIONS, Dense, layer_norm

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Masks = Bool[Array, "..."]  # [.., t, s], or with `Transformer.mask_index` [masks, .., t, s]


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the parameters of a `Transformer` with `scan` to those of one without."""
    if "blocks" not in params:
        return dict(params)
    depth = len(jax.tree.leaves(params["blocks"])[0])
    return {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches.

    On a CPU tokens are rows of one matrix, which matrix products read as it is. Were there a reshape between them, XLA's
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
    causal: bool
    dtype: DTypeLike

    def setup(self):
        self.norm1 = layer_norm(self.eps, self.dtype, None)
        self.attention = SelfAttention(self.width, self.heads, self.std, self.out_std, self.causal, self.dtype)
        self.norm2 = layer_norm(self.eps, self.dtype, None)
        self.mlp_in = Dense((self.mlp_dim,), ("embed", "mlp"), (2 * self.width) ** -0.5, self.dtype)
        self.mlp_out = Dense((self.width,), ("mlp", "embed"), self.out_std, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Float[Array, "batch length width"], mask: Masks | None = None, deterministic: bool = True):
        return self._residual(x, lambda y: (self.attention(y, len(x), mask), None), deterministic)[0]

    def prefill(self, x: Float[Array, "batch length width"], cache: KVCache, mask: Masks | None = None):
        return self._residual(x, lambda y: self.attention.prefill(y, len(x), cache, mask))

    def decode_step(self, x: Float[Array, "batch 1 width"], cache: KVCache, position: Int[Array, ""], mask: Masks):
        return self._residual(x, lambda y: self.attention.decode_step(y, len(x), cache, position, mask))

    def _residual(self, x, attention: Callable, deterministic: bool = True):
        """Applies the block with this attention, `y -> (y, cache)`."""
        shape = x.shape
        as_rows = _compiles_for_cpu()
        if as_rows:
            x = x.reshape(-1, self.width)
        y, cache = attention(self.norm1(x))
        x = x + self.drop(y, deterministic=deterministic)
        y = ACTIVATIONS[self.activation](self.mlp_in(self.norm2(x)))
        y = nn.with_logical_constraint(y, ("batch", "mlp") if as_rows else ("batch", None, "mlp"))
        x = x + self.drop(self.mlp_out(y), deterministic=deterministic)
        return nn.with_logical_constraint(x.reshape(shape), ("batch", None, None)), cache


def _compiles_for_cpu() -> bool:
    """Whether this program is traced for a CPU, by the devices of the current mesh or else JAX's default ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


class Transformer(nn.Module):
    """`depth` blocks. Weights start as CLIP's do (openai/CLIP, `initialize_parameters`).

    Attributes:
      mlp_ratio: width of the MLP over that of the stream.
      activation: a key of `nn_jax.layers.ACTIVATIONS`.
      eps: of the layer norms; 1e-5 in CLIP.
      causal: tokens attend to themselves and those before them alone.
      scan: one compiled block for all depths, parameters stacked under `blocks` with a leading axis; else `block_<i>`.
      remat: "none"; "full" recomputes each block in the backward pass; "dots" keeps matrix products.
      mask_index: for each block, which of several masks it uses; (): there is one mask for all.
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
    mask_index: tuple[int, ...] = ()

    def setup(self):
        if self.mask_index and len(self.mask_index) != self.depth:
            raise ValueError(f"mask_index names the masks of {len(self.mask_index)} blocks; there are {self.depth}")
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
            "causal": self.causal,
            "dtype": self.dtype,
        }
        if self.scan:
            self.blocks = block(**options)
        else:
            for index in range(self.depth):
                setattr(self, f"block_{index}", block(**options))

    def __call__(
        self, x: Float[Array, "batch length width"], masks: Masks | None = None, deterministic: bool = True
    ) -> Float[Array, "batch length width"]:
        """Computes the residual stream after all blocks. masks: where a token (row) may attend; see `mask_index`."""
        if not self.scan:
            for index in range(self.depth):
                x = self._block(index)(x, self._mask(masks, index), deterministic)
            return x

        def apply(block, x, index):
            return block(x, masks[index] if self.mask_index else masks, deterministic), None

        stack = nn.scan(
            apply,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(self.blocks, x, jnp.asarray(self.mask_index or (0,) * self.depth))[0]

    def empty_caches(self, batch: int, length: int) -> tuple[KVCache, ...]:
        """Makes a KV cache for each block, with room for `length` tokens."""
        return (KVCache.empty(batch, length, self.heads, self.width // self.heads, self.dtype),) * self.depth

    def prefill(
        self, x: Float[Array, "batch prefix width"], caches: tuple[KVCache, ...], masks: Masks | None = None
    ) -> tuple[Float[Array, "batch prefix width"], tuple[KVCache, ...]]:
        """Computes the first tokens of a sequence after all blocks, and the caches with their keys and values.

        For unrolled blocks (`scan=False`, parameters from `unstack_blocks`).
        """
        filled = []
        for index, cache in enumerate(caches):
            x, cache = self._block(index).prefill(x, cache, self._mask(masks, index))
            filled.append(cache)
        return x, tuple(filled)

    def decode_step(
        self,
        x: Float[Array, "batch 1 width"],
        caches: tuple[KVCache, ...],
        position: Int[Array, ""],
        masks: Masks | None = None,
    ) -> tuple[Float[Array, "batch 1 width"], tuple[KVCache, ...]]:
        """Computes the token at `position` after all blocks, and the caches with its keys and values; for unrolled
        blocks.

        masks: of its row, [.., 1, length of the caches]; None: it attends to all before it.
        """
        written = jnp.arange(caches[0].keys.shape[2]) <= position
        filled = []
        for index, cache in enumerate(caches):
            mask = written[None, None, None] if masks is None else self._mask(masks, index)
            x, cache = self._block(index).decode_step(x, cache, position, mask)
            filled.append(cache)
        return x, tuple(filled)

    def _block(self, index: int) -> Block:
        if self.scan:
            raise ValueError("a KV cache needs unrolled blocks: scan=False, with parameters from `unstack_blocks`")
        return getattr(self, f"block_{index}")

    def _mask(self, masks: Masks | None, index: int) -> Masks | None:
        return masks[self.mask_index[index]] if self.mask_index else masks
