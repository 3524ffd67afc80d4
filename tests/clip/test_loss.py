"""The losses against loops over pairs, with duplicates; dense and ring losses agree on one and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import loss, ring_loss
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


FORMS = {"dense": (loss.softmax_loss, loss.sigmoid_loss)} | {
    f"tiles of {tile}": tuple(
        functools.partial(form, tile=tile) for form in (ring_loss.softmax_loss, ring_loss.sigmoid_loss)
    )
    for tile in (1, 6, 100)  # at most: of 16 rows 1, 4 and 16
}


@pytest.mark.parametrize("ids", [jnp.arange(2 * N).reshape(N, 2), IDS], ids=["distinct", "duplicates"])
@pytest.mark.parametrize("form", FORMS)
def test_losses_equal_loops_over_pairs(ids, form):
    group = loss.group_captions(ids)
    softmax, sigmoid = FORMS[form]
    value, _ = softmax(IMAGES, TEXTS, jnp.asarray(SCALE), group)
    np.testing.assert_allclose(value, softmax_by_hand(IMAGES, TEXTS, SCALE, ids), rtol=1e-5)
    value, _ = sigmoid(IMAGES, TEXTS, jnp.asarray(SCALE), jnp.asarray(BIAS), group)
    np.testing.assert_allclose(value, sigmoid_by_hand(IMAGES, TEXTS, SCALE, BIAS, ids), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_distinct_captions_give_the_papers_cross_entropy(form):
    value, _ = FORMS[form][0](IMAGES, TEXTS, jnp.asarray(SCALE), jnp.arange(N))
    logits = SCALE * IMAGES @ TEXTS.T
    rows = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(1)))
    columns = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(0)))
    np.testing.assert_allclose(value, (rows + columns) / 2, rtol=1e-5)


def test_negatives_loss_equals_a_loop_over_the_pairs_that_have_one():
    negatives, has_negative, scale = jnp.asarray(unit(3)), jnp.arange(N) % 3 > 0, jnp.asarray(SCALE)
    value, accuracy = jax.jit(loss.negatives_loss)(IMAGES, TEXTS, negatives, scale, has_negative)
    margins = [SCALE * float(IMAGES[i] @ TEXTS[i] - IMAGES[i] @ negatives[i]) for i in range(N) if has_negative[i]]
    np.testing.assert_allclose(value, np.mean([np.log1p(np.exp(-margin)) for margin in margins]), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean([margin > 0 for margin in margins]), rtol=1e-6)
    assert 0 < accuracy < 1
    nothing = loss.negatives_loss(IMAGES, TEXTS, negatives, scale, jnp.zeros(N, bool))
    assert [float(x) for x in nothing] == [0, 0]


@pytest.mark.parametrize("length", [1, 2, 77])
def test_same_caption_is_equality_of_rows(length):
    ids = np.random.default_rng(length).integers(0, 3, (40, length)).astype(np.int32)
    ids[20:] = ids[np.random.default_rng(0).permutation(20)]
    group = np.asarray(loss.group_captions(jnp.asarray(ids)))
    rows = ids.tolist()
    np.testing.assert_array_equal(group[:, None] == group[None], [[a == b for b in rows] for a in rows])


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_counts_any_positive_partner(form):
    images = jnp.eye(DIM)[jnp.arange(N) % DIM]
    ids = (jnp.arange(N) % DIM)[:, None]
    softmax, sigmoid = FORMS[form]
    _, metrics = softmax(images, images, jnp.asarray(SCALE), loss.group_captions(ids))
    assert metrics["accuracy/image_to_text"] == 1 and metrics["accuracy/text_to_image"] == 1
    _, metrics = sigmoid(images, images, jnp.asarray(SCALE), jnp.asarray(BIAS), jnp.arange(N))
    assert metrics["accuracy/image_to_text"] == 0.5, "ties go to the first of two equal captions"


# Of 8 devices, with 2 rows each, along two axes; of 4, with 4 rows each, beside the tensor axis.
@pytest.mark.parametrize("sizes, tiles", [((2, 4, 1), (2, 1)), ((2, 2, 2), (2,))])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_dense_and_ring_losses_agree_on_one_and_eight_devices(kind, sizes, tiles):
    """Loss, accuracies and every gradient, logit scale and bias included, to 1e-5."""

    def run(module, **options):
        def value(images, texts, scale, bias, ids):
            group = loss.group_captions(ids)
            if kind == "softmax":
                return module.softmax_loss(images, texts, scale, group, **options)
            return module.sigmoid_loss(images, texts, scale, bias, group, **options)

        return jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True)

    arguments = (IMAGES, TEXTS, jnp.asarray(SCALE), jnp.asarray(BIAS), IDS)
    expected, *results = jax.jit(lambda *x: [run(loss)(*x), run(ring_loss, tile=4)(*x)])(*arguments)
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    rows, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        shardings = (rows, rows, replicated, replicated, rows)
        placed = [jax.device_put(x, s) for x, s in zip(arguments, shardings, strict=True)]
        functions = [run(loss), *(run(ring_loss, tile=tile) for tile in tiles)]
        results += jax.jit(lambda *x: [function(*x) for function in functions], in_shardings=shardings)(*placed)
    assert len(results) == 2 + len(tiles)
    for result in results:
        for actual, value in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)
    assert rows.spec == P(("data", "fsdp"))


def test_tiles_never_hold_all_logits():
    """Temporary memory of the compiled backward pass, 8 devices: rows x tile, where the dense form has rows x n."""
    n, dim = 4096, 16
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    rows = sharding.batch_sharding(mesh)

    def bytes_of(function):
        shapes = [jax.ShapeDtypeStruct((n, dim), jnp.float32, sharding=rows)] * 2
        gradient = jax.grad(lambda x, y: function(x, y, jnp.asarray(SCALE), jnp.arange(n))[0], argnums=(0, 1))
        with jax.set_mesh(mesh):
            return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    local = n // 8
    assert bytes_of(functools.partial(ring_loss.softmax_loss, tile=32)) < 4 * (8 * local * 32 + 40 * local * dim)
    assert bytes_of(loss.softmax_loss) > 4 * local * n


def test_both_forms_have_a_gradient_in_half_precision():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (IMAGES, TEXTS)]
    for softmax, _ in FORMS.values():
        grads = jax.grad(lambda x, y, f=softmax: f(x, y, jnp.asarray(SCALE), jnp.arange(N))[0], argnums=(0, 1))(*half)
        assert all(g.dtype == jnp.bfloat16 and jnp.isfinite(g).all() for g in grads)


def test_half_precision_embeddings_are_compared_in_float32():
    half = loss.softmax_loss(
        jnp.asarray(IMAGES, jnp.bfloat16), jnp.asarray(TEXTS, jnp.bfloat16), jnp.asarray(SCALE), jnp.arange(N)
    )[0]
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (IMAGES, TEXTS)]
    full = loss.softmax_loss(*rounded, jnp.asarray(SCALE), jnp.arange(N))[0]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, rtol=1e-6)
