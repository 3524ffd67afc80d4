"""Buckets of text lengths: micro-batches of texts of similar length, each cut to the shortest length that holds it.

A causal text tower reads nothing after the end of a text, so the loss stays the same. Captions of web data have about 15 of
77 tokens (LAION-400M, arXiv 2111.02114).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from train_jax import sharding


def sort_by_length(ends: Int[Array, "n"], num_microbatches: int) -> tuple[Callable, Callable]:
    """Makes functions that sort the rows of an array for micro-batches of similar length, and that undo it.

    Rows are sorted within each device's part of the batch, and stay there.

    Args:
      ends: position of the end token of each text.
      num_microbatches: number of micro-batches of `train_jax.sharding.split_batch`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else sharding.parts(mesh)
    ranked = jnp.argsort(ends.reshape(shards, -1), axis=1)
    # `split_batch` puts every `num_microbatches`-th row into a micro-batch.
    order = ranked.reshape(shards, num_microbatches, -1).swapaxes(1, 2).reshape(shards, -1)

    def take(x: jax.Array, order: jax.Array) -> jax.Array:
        by_shard = x.reshape(shards, -1, *x.shape[1:])
        order = order.reshape(*order.shape, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(by_shard, order, axis=1).reshape(x.shape)

    return lambda x: take(x, order), lambda x: take(x, jnp.argsort(order, axis=1))


def encode_at_length(encode: Callable, ids: Int[Array, "n length"], ends: Int[Array, "n"], lengths: Sequence[int]):
    """Applies `encode` to texts cut to the shortest of `lengths` that holds all of them, or uncut.

    All devices take the same length, since a branch may contain collectives.
    """
    if not lengths:
        return encode(ids)
    encode = jax.checkpoint(encode)  # or the values that the backward pass needs of each branch would be kept
    lengths = [*sorted({n for n in lengths if n < ids.shape[1]}), ids.shape[1]]
    longest = sharding.max_over_data(jnp.max(ends)) + 1
    bucket = jnp.searchsorted(jnp.asarray(lengths), longest)
    return jax.lax.switch(bucket, [lambda ids, n=n: encode(ids[:, :n]) for n in lengths], ids)
