"""The losses against loops over pairs, with duplicates, and the same on one device as on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.loss import same_caption, sigmoid_loss, softmax_loss
from train_jax import sharding

N, DIM, SCALE, BIAS = 16, 8, 14.0, -3.0


def unit(seed):
    x = np.random.default_rng(seed).standard_normal((N, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


IMAGES, TEXTS = jnp.asarray(unit(0)), jnp.asarray(unit(1))
IDS = jnp.asarray(
    np.random.default_rng(2).integers(0, 3, (N, 2)).astype(np.int32)
)  # nine captions at most: many are equal


def softmax_by_hand(images, texts, scale, ids):
    images, texts, ids = (np.asarray(x) for x in (images, texts, ids))
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        for i in range(N):
            logits = [scale * float(a[i] @ b[j]) for j in range(N)]
            positives = [j for j in range(N) if tuple(ids[i]) == tuple(ids[j])]
            log_sum = np.log(sum(np.exp(value) for value in logits))
            total += sum(log_sum - logits[j] for j in positives) / len(positives)
    return total / (2 * N)


def sigmoid_by_hand(images, texts, scale, bias, ids):
    images, texts, ids = (np.asarray(x) for x in (images, texts, ids))
    total = 0.0
    for i in range(N):
        for j in range(N):
            z = 1 if tuple(ids[i]) == tuple(ids[j]) else -1
            total += np.log1p(np.exp(-z * (scale * float(images[i] @ texts[j]) + bias)))
    return total / N


@pytest.mark.parametrize("ids", [jnp.arange(2 * N).reshape(N, 2), IDS], ids=["distinct", "duplicates"])
def test_losses_equal_loops_over_pairs(ids):
    positive = same_caption(ids)
    found, _ = softmax_loss(IMAGES, TEXTS, jnp.asarray(SCALE), positive)
    np.testing.assert_allclose(found, softmax_by_hand(IMAGES, TEXTS, SCALE, ids), rtol=1e-5)
    found, _ = sigmoid_loss(IMAGES, TEXTS, jnp.asarray(SCALE), jnp.asarray(BIAS), positive)
    np.testing.assert_allclose(found, sigmoid_by_hand(IMAGES, TEXTS, SCALE, BIAS, ids), rtol=1e-5)


def test_distinct_captions_give_the_papers_cross_entropy():
    found, _ = softmax_loss(IMAGES, TEXTS, jnp.asarray(SCALE), jnp.eye(N, dtype=bool))
    logits = SCALE * IMAGES @ TEXTS.T
    rows = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(1)))
    columns = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(0)))
    np.testing.assert_allclose(found, (rows + columns) / 2, rtol=1e-5)


def test_same_caption_is_equality_of_rows():
    ids = np.asarray(IDS).tolist()
    expected = [[a == b for b in ids] for a in ids]
    np.testing.assert_array_equal(same_caption(IDS), expected)


def test_accuracy_counts_any_positive_partner():
    images = jnp.eye(DIM)[jnp.arange(N) % DIM]
    ids = (jnp.arange(N) % DIM)[:, None]
    _, metrics = softmax_loss(images, images, jnp.asarray(SCALE), same_caption(ids))
    assert metrics["accuracy/image_to_text"] == 1 and metrics["accuracy/text_to_image"] == 1
    _, metrics = softmax_loss(images, images, jnp.asarray(SCALE), jnp.eye(N, dtype=bool))
    assert metrics["accuracy/image_to_text"] == 0.5, "ties go to the first of two equal captions"


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1)])
def test_one_device_equals_eight_for_loss_and_every_gradient(sizes):
    def both(images, texts, scale, bias, ids):
        positive = same_caption(ids)
        return softmax_loss(images, texts, scale, positive)[0] + sigmoid_loss(images, texts, scale, bias, positive)[0]

    arguments = (IMAGES, TEXTS, jnp.asarray(SCALE), jnp.asarray(BIAS))
    value, grads = jax.value_and_grad(both, argnums=(0, 1, 2, 3))(*arguments, IDS)
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(both, argnums=(0, 1, 2, 3)), in_shardings=(rows, rows, whole, whole, rows))
        placed = [
            jax.device_put(x, s) for x, s in zip((*arguments, IDS), (rows, rows, whole, whole, rows), strict=True)
        ]
        found, found_grads = run(*placed)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for mine, theirs in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert rows.spec == P(("data", "fsdp"))


def test_half_precision_embeddings_are_compared_in_float32():
    half = softmax_loss(
        jnp.asarray(IMAGES, jnp.bfloat16), jnp.asarray(TEXTS, jnp.bfloat16), jnp.asarray(SCALE), jnp.eye(N, dtype=bool)
    )[0]
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (IMAGES, TEXTS)]
    full = softmax_loss(*rounded, jnp.asarray(SCALE), jnp.eye(N, dtype=bool))[0]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, rtol=1e-6)
