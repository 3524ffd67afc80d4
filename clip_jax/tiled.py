"""The losses of `clip_jax.loss` without the N x N logits: a device holds [its rows, one tile] of them at a time.

Every device keeps its images; the texts visit all devices in a ring (as in arXiv 2303.15343, section 3.3), a tile at a time,
and take what concerns them home. The backward pass makes the same journey and computes the logits again, so that neither
pass holds more than O(rows x tile + rows x dim).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from clip_jax.loss import Metrics, cosines
from train_jax.sharding import BATCH, parts_of, rows_per_device

_NEVER = -1e30  # below any logit; of two minus infinities the difference would be no number


def softmax_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    group: Int[Array, "n"],
    *,
    tile: int,
) -> tuple[Float[Array, ""], Metrics]:
    """`clip_jax.loss.softmax_loss`, at most `tile` columns at a time.

    Under `jax.set_mesh` the rows are split over its data and fsdp axes; a tile is the largest divisor of a device's rows
    that is no larger than `tile`.
    """
    return _tiled("softmax", images, texts, scale, jnp.zeros(()), group, tile)


def sigmoid_loss(
    images: Float[Array, "n dim"],
    texts: Float[Array, "n dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    group: Int[Array, "n"],
    *,
    tile: int,
) -> tuple[Float[Array, ""], Metrics]:
    """`clip_jax.loss.sigmoid_loss`, at most `tile` columns at a time; otherwise as `softmax_loss` here."""
    return _tiled("sigmoid", images, texts, scale, bias, group, tile)


def _tiled(kind: str, images, texts, scale, bias, group, tile: int):
    tiles = parts_of(rows_per_device(jax.sharding.get_abstract_mesh(), images.shape[0]), tile)
    texts, images = texts.astype(jnp.float32), images.astype(jnp.float32)
    loss, to_text, to_image = _loss(kind, tiles, images, texts, scale, bias, group)
    return loss, {"accuracy/image_to_text": to_text, "accuracy/text_to_image": to_image}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(kind: str, tiles: int, images, texts, scale, bias, group):
    return _forward(kind, tiles, images, texts, scale, bias, group)[0]


def _forward(kind, tiles, images, texts, scale, bias, group):
    rows = functools.partial(_forward_rows, kind, tiles)
    totals, sums = _on_devices(rows, (images, texts, group), (scale, bias), (P(), P(BATCH)))
    n = images.shape[0]
    loss, to_text, to_image = (total / n for total in totals)
    return (loss, to_text, to_image), (images, texts, scale, bias, group, sums)


def _backward(kind, tiles, residuals, cotangents):
    images, texts, scale, bias, group, sums = residuals
    rows = functools.partial(_backward_rows, kind, tiles)
    each, total = _on_devices(rows, (images, texts, group, sums), (scale, bias), (P(BATCH), P()))
    factor = cotangents[0] / images.shape[0]
    d_images, d_texts, d_scale, d_bias = (factor * d for d in (*each, *total))
    return d_images, d_texts, d_scale, d_bias, None


_loss.defvjp(_forward, _backward)


def _on_devices(function: Callable, split, whole, out_specs):
    """`function(*split, *whole, devices, total, hand_on)` on every device's rows of `split`; on one where there is no mesh.

    devices: how many there are. total: `x -> x` summed over them. hand_on: `tree ->` that of the device before, in a ring.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*split, *whole, 1, lambda x: x, lambda x: x)
    devices = math.prod(mesh.shape[axis] for axis in BATCH)
    ring = [(i, (i + 1) % devices) for i in range(devices)]

    def local(split, whole):
        total = functools.partial(jax.lax.psum, axis_name=BATCH)
        hand_on = functools.partial(jax.lax.ppermute, axis_name=BATCH, perm=ring)
        return function(*split, *whole, devices, total, hand_on)

    # Replication is known by construction: the sums are of all devices.
    mapped = jax.shard_map(local, in_specs=(P(BATCH), P()), out_specs=out_specs, check_vma=False)
    return mapped(split, whole)


def _journey(visit: Callable, host, guests, tiles: int, devices: int, hand_on: Callable):
    """Shows all devices' guests to each host, a tile at a time: `visit(host, tile) -> (host, tile)`. Guests end at home."""

    def stop(_, state):
        host, guests = state
        parts = jax.tree.map(lambda x: x.reshape(tiles, -1, *x.shape[1:]), guests)
        host, parts = jax.lax.scan(visit, host, parts)
        return host, hand_on(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts))

    return jax.lax.fori_loop(0, devices, stop, (host, guests))


def _forward_rows(kind, tiles, images, texts, group, scale, bias, devices, total, hand_on):
    """Sums over all rows of the loss and the hits; and of each row what the backward pass needs."""
    rows = images.shape[0]

    def visit(host, guest):
        z = scale * cosines(images, guest["text"]) + bias
        positive = group[:, None] == guest["group"][None, :]
        if kind == "sigmoid":
            host = host | {"loss": host["loss"] - jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, z, -z)))}
        return _seen(kind, host, z, positive, axis=1), _seen(kind, guest, z, positive, axis=0)

    nothing = {"max": jnp.full(rows, _NEVER), "hit": jnp.zeros(rows)}
    if kind == "softmax":
        nothing |= {name: jnp.zeros(rows) for name in ("sum", "positive", "count")}
    host = nothing | ({"loss": jnp.zeros(())} if kind == "sigmoid" else {})
    guests = nothing | {"text": texts, "group": group}
    host, guests = _journey(visit, host, guests, tiles, devices, hand_on)
    hits = total(jnp.sum(host["hit"])), total(jnp.sum(guests["hit"]))
    if kind == "sigmoid":
        return (total(host["loss"]), *hits), ()
    lse = tuple(side["max"] + jnp.log(side["sum"]) for side in (host, guests))
    losses = [log_sum - side["positive"] / side["count"] for log_sum, side in zip(lse, (host, guests), strict=True)]
    return (total(jnp.sum(losses[0] + losses[1]) / 2), *hits), (*lse, host["count"])


def _seen(kind: str, side: dict, z, positive, axis: int) -> dict:
    """Running figures of one side's rows after a tile of logits: the largest, whether it is a right one, and sums."""
    most = jnp.max(z, axis=axis)
    place = jnp.expand_dims(jnp.argmax(z, axis=axis), axis)
    hit = jnp.take_along_axis(positive, place, axis=axis).squeeze(axis).astype(jnp.float32)
    new = {"max": jnp.maximum(side["max"], most), "hit": jnp.where(most > side["max"], hit, side["hit"])}
    if kind == "softmax":
        exps = jnp.sum(jnp.exp(z - jnp.expand_dims(new["max"], axis)), axis=axis)
        new["sum"] = side["sum"] * jnp.exp(side["max"] - new["max"]) + exps
        new["positive"] = side["positive"] + jnp.sum(jnp.where(positive, z, 0.0), axis=axis)
        new["count"] = side["count"] + jnp.sum(positive, axis=axis, dtype=jnp.float32)
    return side | new


def _backward_rows(kind, tiles, images, texts, group, sums, scale, bias, devices, total, hand_on):
    """Gradients of the summed loss: of each image and text, and of scale and bias."""

    def visit(host, guest):
        cosine = cosines(images, guest["text"])
        z = scale * cosine + bias
        positive = group[:, None] == guest["group"][None, :]
        if kind == "sigmoid":
            d_z = jnp.where(positive, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z))
        else:
            row_lse, _, count = sums
            # Partners have one group, and so one count.
            target = jnp.where(positive, 1 / count[:, None], 0.0)
            d_z = (jnp.exp(z - row_lse[:, None]) + jnp.exp(z - guest["lse"][None, :])) / 2 - target
        d_cosine = scale * d_z
        d_image, d_scale, d_bias = host
        host = (
            d_image + _product(d_cosine, guest["text"]),
            d_scale + jnp.sum(d_z * cosine),
            d_bias + jnp.sum(d_z),
        )
        return host, guest | {"d_text": guest["d_text"] + _product(d_cosine.T, images)}

    guests = {"text": texts, "group": group, "d_text": jnp.zeros_like(texts)}
    if kind == "softmax":
        guests["lse"] = sums[1]
    host = (jnp.zeros_like(images), jnp.zeros(()), jnp.zeros(()))
    (d_image, d_scale, d_bias), guests = _journey(visit, host, guests, tiles, devices, hand_on)
    return (d_image, guests["d_text"]), (total(d_scale), total(d_bias))


def _product(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
