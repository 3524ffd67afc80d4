"""Contrastive losses of `clip_jax.loss` that never store the N x N logits: each device computes one tile at a time.

Every device keeps its images. The shards of texts and their accumulated statistics are passed around a ring of devices
(as in arXiv 2303.15343, section 3.3) and processed tile by tile. The backward pass goes around the same ring and
recomputes the logits, so both passes need O(rows x tile + rows x dim) memory.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from clip_jax.loss import Metrics, compute_cosines, multiply
from train_jax.sharding import BATCH, parts_of, rows_per_device

_MINUS_INFINITY = -1e30  # below any logit; with -inf, the difference of two initial maxima would be NaN


def softmax_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    group: Int[Array, "n"],
    *,
    tile: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes `clip_jax.loss.softmax_loss` with at most `tile` columns of the logits at a time.

    Under `jax.set_mesh` the rows are sharded over the data and fsdp axes. The tile size is the largest divisor of the
    number of rows per device that is at most `tile`.
    """
    return _ring_loss("softmax", images, texts, scale, jnp.zeros(()), group, tile)


def sigmoid_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    group: Int[Array, "n"],
    *,
    tile: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Computes `clip_jax.loss.sigmoid_loss` with at most `tile` columns at a time, sharded as in `softmax_loss`."""
    return _ring_loss("sigmoid", images, texts, scale, bias, group, tile)


def _softmax_loss_without_bias(images, texts, scale, bias, group, *, tile: int):
    return softmax_loss(images, texts, scale, group, tile=tile)


# Tiled versions of the functions in `clip_jax.loss.LOSSES`, by the same names.
LOSSES: dict[str, Callable] = {"softmax": _softmax_loss_without_bias, "sigmoid": sigmoid_loss}


def _ring_loss(kind: str, images, texts, scale, bias, group, tile: int):
    num_tiles = parts_of(rows_per_device(jax.sharding.get_abstract_mesh(), images.shape[0]), tile)
    texts, images = texts.astype(jnp.float32), images.astype(jnp.float32)
    loss, image_to_text, text_to_image = _loss(kind, num_tiles, images, texts, scale, bias, group)
    return loss, {"accuracy/image_to_text": image_to_text, "accuracy/text_to_image": text_to_image}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(kind: str, num_tiles: int, images, texts, scale, bias, group):
    return _forward(kind, num_tiles, images, texts, scale, bias, group)[0]


def _forward(kind, num_tiles, images, texts, scale, bias, group):
    process_rows = functools.partial(_forward_rows, kind, num_tiles)
    totals, sums = _map_over_devices(process_rows, (images, texts, group), (scale, bias), (P(), P(BATCH)))
    n = images.shape[0]
    loss, image_to_text, text_to_image = (total / n for total in totals)
    return (loss, image_to_text, text_to_image), (images, texts, scale, bias, group, sums)


def _backward(kind, num_tiles, residuals, cotangents):
    images, texts, scale, bias, group, sums = residuals
    process_rows = functools.partial(_backward_rows, kind, num_tiles)
    sharded_grads, summed_grads = _map_over_devices(
        process_rows, (images, texts, group, sums), (scale, bias), (P(BATCH), P())
    )
    factor = cotangents[0] / images.shape[0]
    d_images, d_texts, d_scale, d_bias = (factor * d for d in (*sharded_grads, *summed_grads))
    return d_images, d_texts, d_scale, d_bias, None


_loss.defvjp(_forward, _backward)


def _map_over_devices(function: Callable, sharded, replicated, out_specs):
    """Applies `function(*sharded, *replicated, num_devices, psum, permute)` to each device's rows of `sharded`.

    `num_devices` is the size of the ring (1 without a mesh), `psum(x)` sums over devices, and `permute(tree)` returns
    the tree of the previous device in the ring.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*sharded, *replicated, 1, lambda x: x, lambda x: x)
    num_devices = math.prod(mesh.shape[axis] for axis in BATCH)
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]

    def local_function(sharded, replicated):
        psum = functools.partial(jax.lax.psum, axis_name=BATCH)
        permute = functools.partial(jax.lax.ppermute, axis_name=BATCH, perm=ring)
        return function(*sharded, *replicated, num_devices, psum, permute)

    # check_vma=False: replicated outputs are replicated by construction, as sums over all devices.
    mapped = jax.shard_map(local_function, in_specs=(P(BATCH), P()), out_specs=out_specs, check_vma=False)
    return mapped(sharded, replicated)


def _ring_pass(process_tile: Callable, local, rows, sums, num_tiles: int, num_devices: int, permute: Callable):
    """Passes shards of `rows` and their `sums` around the ring: `process_tile(local, tile of both) -> (local, sums)`.

    Rows are sent on while they are processed, sums afterwards. Returns the final `local`, and the sums of this device's
    shard after it visited all devices.
    """

    def one_pass(_, state):
        local, rows, sums = state
        tiled = jax.tree.map(lambda x: x.reshape(num_tiles, -1, *x.shape[1:]), rows | sums)
        next_rows = permute(rows)
        local, tiled = jax.lax.scan(process_tile, local, tiled)
        return local, next_rows, permute(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tiled))

    local, _, sums = jax.lax.fori_loop(0, num_devices, one_pass, (local, rows, sums))
    return local, sums


def _forward_rows(kind, num_tiles, images, texts, group, scale, bias, num_devices, psum, permute):
    """Sums the loss and the correct retrievals over all rows. Also returns the log-sum-exps for the backward pass."""
    num_rows = images.shape[0]

    def process_tile(local, tile):
        logits = scale * compute_cosines(images, tile["text"]) + bias
        positive = group[:, None] == tile["group"][None, :]
        if kind == "sigmoid":
            local = local | {"loss": local["loss"] - jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits)))}
        local = _update_statistics(kind, local, logits, positive, axis=1)
        return local, _update_statistics(kind, {name: tile[name] for name in initial}, logits, positive, axis=0)

    initial = {"max": jnp.full(num_rows, _MINUS_INFINITY), "hit": jnp.zeros(num_rows)}
    if kind == "softmax":
        initial |= {name: jnp.zeros(num_rows) for name in ("sum", "positive", "count")}
    local = initial | ({"loss": jnp.zeros(())} if kind == "sigmoid" else {})
    rows = {"text": texts, "group": group}
    local, visiting = _ring_pass(process_tile, local, rows, initial, num_tiles, num_devices, permute)
    hits = psum(jnp.sum(local["hit"])), psum(jnp.sum(visiting["hit"]))
    if kind == "sigmoid":
        return (psum(local["loss"]), *hits), ()
    lse = tuple(stats["max"] + jnp.log(stats["sum"]) for stats in (local, visiting))
    losses = [
        log_sum - stats["positive"] / stats["count"] for log_sum, stats in zip(lse, (local, visiting), strict=True)
    ]
    return (psum(jnp.sum(losses[0] + losses[1]) / 2), *hits), (*lse, local["count"])


def _update_statistics(kind: str, stats: dict, logits, positive, axis: int) -> dict:
    """Updates the online log-sum-exp statistics of the images or the texts with a tile of logits."""
    largest = jnp.max(logits, axis=axis)
    index = jnp.expand_dims(jnp.argmax(logits, axis=axis), axis)
    hit = jnp.take_along_axis(positive, index, axis=axis).squeeze(axis).astype(jnp.float32)
    updated = {"max": jnp.maximum(stats["max"], largest), "hit": jnp.where(largest > stats["max"], hit, stats["hit"])}
    if kind == "softmax":
        exps = jnp.sum(jnp.exp(logits - jnp.expand_dims(updated["max"], axis)), axis=axis)
        updated["sum"] = stats["sum"] * jnp.exp(stats["max"] - updated["max"]) + exps
        updated["positive"] = stats["positive"] + jnp.sum(jnp.where(positive, logits, 0.0), axis=axis)
        updated["count"] = stats["count"] + jnp.sum(positive, axis=axis, dtype=jnp.float32)
    return stats | updated


def _backward_rows(kind, num_tiles, images, texts, group, sums, scale, bias, num_devices, psum, permute):
    """Computes the gradients of the summed loss with respect to images, texts, scale and bias."""

    def process_tile(local, tile):
        cosine = compute_cosines(images, tile["text"])
        logits = scale * cosine + bias
        positive = group[:, None] == tile["group"][None, :]
        if kind == "sigmoid":
            d_logits = jnp.where(positive, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
        else:
            row_lse, _, count = sums
            # A positive pair is of one group, so image and text have the same count.
            target = jnp.where(positive, 1 / count[:, None], 0.0)
            d_logits = (jnp.exp(logits - row_lse[:, None]) + jnp.exp(logits - tile["lse"][None, :])) / 2 - target
        d_cosine = scale * d_logits
        d_image, d_scale, d_bias = local
        local = (
            d_image + multiply(d_cosine, tile["text"]),
            d_scale + jnp.sum(d_logits * cosine),
            d_bias + jnp.sum(d_logits),
        )
        return local, {"d_text": tile["d_text"] + multiply(d_cosine.T, images)}

    rows = {"text": texts, "group": group} | ({"lse": sums[1]} if kind == "softmax" else {})
    local, d_text = (jnp.zeros_like(images), jnp.zeros(()), jnp.zeros(())), {"d_text": jnp.zeros_like(texts)}
    (d_image, d_scale, d_bias), visiting = _ring_pass(
        process_tile, local, rows, d_text, num_tiles, num_devices, permute
    )
    return (d_image, visiting["d_text"]), (psum(d_scale), psum(d_bias))
