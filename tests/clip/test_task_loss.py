"""CLIP's loss as the trainer computes it: against NumPy, sharded and micro-batched, with dropout and frozen towers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import task as clip_task
from clip_jax.options import CLIPCompute
from train_jax import sharding
from train_jax.data.errors import DataError
from train_jax.data.images import Preprocess, normalize
from train_jax.data.text import Tokenizer
from train_jax.plan import hlo

LENGTH = 10
RESNET = {"tower": "resnet", "size": 32, "width": 4, "layers": (1, 1, 1, 1), "heads": 4}


def model_image(**options) -> dict:
    """Options of the image tower as arguments of `resolve`."""
    return {f"model__image__{name}": value for name, value in options.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Values


def test_the_loss_is_the_softmax_loss_of_both_towers(resolve, batch, random_variables):
    """Against the softmax loss in NumPy, of the module's embeddings for pixels normalised in NumPy."""
    config = resolve()
    task = clip_task.make(config, None)
    data = batch(task)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    value, (metrics, updated_variables) = jax.jit(task.loss)(params, {}, data, jax.random.key(1), 0)
    tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
    preprocess = Preprocess.from_json(task.artifacts["preprocess.json"])
    compute = CLIPCompute.parse(config.compute, "compute")
    module = clip_task.model.build(config.model, tokenizer.vocab_size, tokenizer.eos_id, compute)
    pixels = (np.asarray(data["image"]) / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    np.testing.assert_allclose(normalize(data["image"], preprocess.mean, preprocess.std), pixels, atol=1e-5)
    image, text, _, _ = jax.jit(module.apply)({"params": params["clip"]}, jnp.asarray(pixels, jnp.float32), data["text"])
    logits = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T / 0.07
    equal = np.array([[np.array_equal(a, b) for b in data["text"]] for a in data["text"]])
    assert equal.sum() > 8, "some captions are equal"
    expected = 0
    for axis in (0, 1):
        log_p = logits - np.log(np.exp(logits).sum(axis, keepdims=True))
        expected -= np.mean((equal * log_p).sum(axis) / equal.sum(axis)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["truncated"], data["truncated"].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["logit_scale"], 1 / 0.07, rtol=1e-5)
    assert updated_variables == {}


def test_negatives_add_their_loss(resolve, batch, random_variables):
    """Against the embeddings of captions and negatives, in NumPy; a caption without a negative is left out."""
    config = resolve(contrastive__negatives=0.5)
    plain, task = (clip_task.make(x, None) for x in (resolve(), config))
    data = batch(task)
    assert "negative" not in batch(plain)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
    module = clip_task.model.build(
        config.model, tokenizer.vocab_size, tokenizer.eos_id, CLIPCompute.parse(config.compute, "compute")
    )
    preprocess = Preprocess.from_json(task.artifacts["preprocess.json"])

    def run(params, data):
        losses = [x.loss(params, {}, data, jax.random.key(1), 0) for x in (plain, task)]
        pixels = normalize(data["image"], preprocess.mean, preprocess.std)
        embeddings = [module.apply({"params": params["clip"]}, pixels, data[name])[:2] for name in ("text", "negative")]
        return losses, embeddings

    losses, ((image, text), (_, negative)) = jax.jit(run)(params, data)
    is_false = np.any(np.asarray(data["text"]) != np.asarray(data["negative"]), axis=1)
    assert 0 < is_false.sum() < 8
    margins = np.sum(np.asarray(image, np.float64) * (np.asarray(text) - np.asarray(negative)), axis=1)[is_false] / 0.07
    (before, _), (after, (metrics, _)) = losses
    np.testing.assert_allclose(metrics["negatives"], np.mean(np.log1p(np.exp(-margins))), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy/negatives"], np.mean(margins > 0), rtol=1e-6)
    np.testing.assert_allclose(after, before + 0.5 * metrics["negatives"], rtol=1e-6)


def test_a_record_without_negatives_is_refused(make_task, record):
    task = make_task(contrastive__negatives=0.5)
    for negatives in ((), ("one",)):
        with pytest.raises(DataError, match=f"record 2 has 3 captions and {len(negatives)} negatives: name a source"):
            task.example(record(2) | {"negatives": negatives}, np.random.default_rng(0))
    bare = {name: value for name, value in record(2).items() if name != "negatives"}
    for odd in (bare, bare | {"negatives": None}, bare | {"negatives": "abc"}):
        with pytest.raises(DataError, match="record 2 has 3 captions and no list of negatives: name a source"):
            task.example(odd, np.random.default_rng(0))


def test_equal_captions_as_positives_or_negatives(make_task, batch, random_variables):
    """The sigmoid loss differs; in the softmax loss the sums over a group of equal captions are the same."""
    values = {}
    for loss in ("softmax", "sigmoid"):
        tasks = [make_task(model__loss=loss, contrastive__duplicates=name) for name in ("positive", "negative")]
        data = batch(tasks[0])
        params, _ = random_variables(tasks[0].init, jax.random.key(0), data)
        params["clip"]["logit_scale"] = jnp.zeros(())  # with the bias of -10, logits of the sigmoid loss are -11 to -9

        def both(params, tasks=tasks, data=data):
            return [task.loss(params, {}, data, jax.random.key(1), 0)[0] for task in tasks]

        values[loss] = [float(value) for value in jax.jit(both)(params)]
    assert values["softmax"][0] == pytest.approx(values["softmax"][1], rel=1e-5)
    pairs = sum((a == b).all() for a in data["text"] for b in data["text"]) - 8  # equal captions of different images
    # A negative that becomes a positive adds log(sigmoid(-z)) - log(sigmoid(z)) = -z to the sum.
    assert pairs > 8 and 9 * pairs / 8 <= values["sigmoid"][0] - values["sigmoid"][1] <= 11 * pairs / 8


def test_sixteen_pairs_are_memorised_in_bfloat16_as_in_float32(resolve, learn, random_variables):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    curves, gradients = {}, {}
    for dtype, updates in (("float32", 150), ("bfloat16", 12)):
        config = resolve(steps=150, compute__dtype=dtype, optim__lr=3e-3)
        task = clip_task.make(config, None)
        tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
        text = tokenizer.encode([f"{a} {b}" for a in "abcd" for b in "wxyz"])
        data = {"image": images, "text": text, "truncated": np.zeros(16, bool)}
        _, history = learn(task, config, data, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        gradients[dtype] = jax.jit(
            jax.grad(lambda p, t=task, d=data: t.loss(p, {}, jax.tree.map(jnp.asarray, d), jax.random.key(1), 0)[0])
        )
        if dtype == "float32":
            assert history[-1]["accuracy/image_to_text"] == history[-1]["accuracy/text_to_image"] == 1
            assert curves[dtype][-1] < 0.1
    # Cosines of 8 numbers have errors of some 2^-8, and the scale that multiplies them is 14 at the start.
    np.testing.assert_allclose(curves["bfloat16"][0], curves["float32"][0], atol=0.1)
    # Adam's first updates are signs of gradients, also of those near 0. Afterwards the curves meet.
    np.testing.assert_allclose(curves["bfloat16"][4:], curves["float32"][4:12], atol=0.05)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    exact, short = (gradients[dtype](params) for dtype in ("float32", "bfloat16"))
    rounded = gradients["float32"](jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params))
    # Each layer rounds four times: weights, inputs, outputs, and the gradient coming back.
    distances = [optax.tree.norm(optax.tree.sub(x, exact)) / optax.tree.norm(exact) for x in (short, rounded)]
    assert distances[0] < 2 * distances[1] < 0.2


# ---------------------------------------------------------------------------------------------------------------------
# Shards and micro-batches

CONV = model_image(stem="conv", width=32, pool="mean")


@pytest.mark.parametrize(
    "mesh, reference, variants",
    [
        (
            (2, 2, 2),
            {"model__loss": "sigmoid", "contrastive__duplicates": "negative", "contrastive__negatives": 0.5}
            | {"compute__scan": True}
            | model_image(pool="map"),
            [
                {},
                {"compute__micro_batch": 1, "compute__text_lengths": (4, 6)}
                | {"contrastive__tile": 4, "compute__remat": "full"},
            ],
        ),
        # Of the 4 rows of a device at most 3: twice 2.
        ((4, 1, 1), {"model__loss": "softmax"} | CONV, [{"compute__micro_batch": 3, "compute__remat": "dots"}]),
        ((2, 2, 2), {"model__loss": "softmax"} | model_image(**RESNET), [{"contrastive__tile": 4}]),
    ],
    ids=["vit", "conv-stem", "resnet"],
)
def test_the_loss_sharded_tiled_and_micro_batched_is_that_of_one_device(
    make_task, batch, random_variables, mesh, reference, variants
):
    """Loss, metrics, statistics and every gradient: the plain task on one device, its variants on eight."""
    plain = make_task(data__batch_size=16, **reference)
    data = batch(plain, 16)
    # With equal images or texts several would be equally near, and which of them comes first differs.
    data["image"] = jax.random.randint(jax.random.key(2), data["image"].shape, 0, 256).astype(jnp.uint8)
    if "contrastive__duplicates" in reference:
        data["text"] = data["text"].at[:, 1].set(jnp.arange(16))
    boxed, _ = jax.eval_shape(plain.init, jax.random.key(0), data)
    params, mutable_variables = random_variables(plain.init, jax.random.key(0), data)
    for name, block in params["clip"]["vision"].items():
        if name.startswith("stage"):  # residual blocks of a ResNet: as the identity, they keep the digits of gradients
            block["norm3"]["scale"] *= 0

    def gradients(task):
        def run(params, data):
            loss = jax.value_and_grad(task.loss, has_aux=True)
            return loss(params, mutable_variables, data, jax.random.key(1), jnp.asarray(0))

        return run

    expected = jax.jit(gradients(plain))(params, data)
    statistics = expected[0][1][1]
    assert bool(jax.tree.leaves(statistics)) == bool(mutable_variables)
    device_mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), jax.devices()[: np.prod(mesh)])
    split = sharding.shardings(boxed, device_mesh)
    for variant in variants:
        task = make_task(data__batch_size=16, **reference, **variant)
        with jax.set_mesh(device_mesh):
            sharded = jax.jit(
                sharding.with_rules(gradients(task)),
                in_shardings=(split, sharding.batch_sharding(device_mesh)),
                out_shardings=(None, split),
            )
            sharded = sharded.lower(params, data).compile()
            actual = sharded(params, data)
        if mesh[1:] == (1, 1):  # gradients of micro-batches are added up before they are exchanged
            reduced = [x for x in hlo.collectives(hlo.parse(sharded.as_text())) if x.kind == "all-reduce"]
            assert [x.in_loop for x in reduced] == [False]
        if reference.get("compute__scan"):
            kernel = actual[1]["clip"]["text"]["transformer"]["blocks"]["mlp_in"]["kernel"]
            assert kernel.sharding.shard_shape(kernel.shape) == (1, 8, 32), "split over fsdp and tensor"
        assert_same_gradients(actual, expected)


def assert_same_gradients(actual, expected) -> None:
    (loss, (metrics, statistics)), grads = actual
    (expected_loss, (expected_metrics, expected_statistics)), expected_grads = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert jax.tree.map(float, metrics) == pytest.approx(jax.tree.map(float, expected_metrics), rel=1e-5)
    # A ResNet's statistics are those of the global batch, however it is sharded.
    for x, y in zip(jax.tree.leaves(statistics), jax.tree.leaves(expected_statistics), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for (path, grad), other in zip(
        jax.tree_util.tree_leaves_with_path(expected_grads), jax.tree.leaves(grads), strict=True
    ):
        # Sums of terms as large as the largest gradient: an entry in which they cancel keeps their rounding errors.
        largest = max(1.0, float(jnp.abs(grad).max()))
        np.testing.assert_allclose(other, grad, rtol=1e-5, atol=1e-5 * largest, err_msg=str(path))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout and frozen towers


def test_dropout_depends_on_the_key(make_task, batch, random_variables):
    task = make_task(dropout=0.3)
    data = batch(task)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(lambda seed: task.loss(params, {}, data, jax.random.key(seed), 0)[0])
    assert loss(1) == loss(1) != loss(2)


def test_micro_batches_draw_the_same_dropout_in_both_passes(make_task, batch, random_variables):
    """The gradient of the micro-batches' features, with the keys of the forward pass: by finite differences."""
    task = make_task(dropout=0.3, compute__micro_batch=4)
    data = batch(task)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(jax.value_and_grad(lambda params: task.loss(params, {}, data, jax.random.key(1), 0)[0]))
    _, grads = loss(params)
    grad = grads["clip"]["vision"]["proj"]["kernel"]
    step = 1e-2 * grad / jnp.linalg.norm(grad)
    kernel = params["clip"]["vision"]["proj"]["kernel"]

    def loss_at(sign):
        clip = params["clip"] | {"vision": params["clip"]["vision"] | {"proj": {"kernel": kernel + sign * step}}}
        return float(loss({"clip": clip})[0])

    slope = (loss_at(1) - loss_at(-1)) / 2e-2
    assert slope == pytest.approx(float(jnp.linalg.norm(grad)), rel=2e-3)


def test_patch_dropout_drops_patches_in_training(make_task, batch, random_variables):
    task = make_task(patch_dropout=0.5)
    data = batch(task)
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(lambda seed: task.loss(params, {}, data, jax.random.key(seed), 0)[0])
    assert loss(1) == loss(1) != loss(2)
    assert task.flops < make_task().flops
    text = jax.make_jaxpr(lambda p: task.loss(p, {}, data, jax.random.key(0), 0)[0])(params).pretty_print()
    assert "8,3,3,2,8]" in text and "8,5,3,2,8]" not in text, "attention over the class token and two of four patches"


def test_a_frozen_tower_keeps_its_weights_and_its_statistics(make_task, batch, random_variables):
    task = make_task(optim__freeze=("^clip/vision/",), **model_image(**RESNET))
    data = batch(task)
    params, mutable_variables = random_variables(task.init, jax.random.key(0), data)
    run = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (_, (_, updated_variables)), grads = run(params, mutable_variables, data, jax.random.key(1), 0)
    assert all((g == 0).all() for g in jax.tree.leaves(grads["clip"]["vision"]))
    assert any((g != 0).any() for g in jax.tree.leaves(grads["clip"]["text"]))
    for updated, before in zip(jax.tree.leaves(updated_variables), jax.tree.leaves(mutable_variables), strict=True):
        np.testing.assert_array_equal(updated, before)
