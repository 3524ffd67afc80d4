"""Whole updates: the codebook's rules inside a step, its averages and moments; many devices, micro-batches.

Encoder and decoder are small here: see tests/vqgan/test_devices.py for whole models.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vqgan_jax
from tests.trees import assert_close
from vqgan_jax import averaging, codebook, quantize

pytestmark = pytest.mark.usefixtures("small_coders")

WITHOUT_DISCRIMINATOR = {"loss.adversarial": "none"}
MOVING = {"model.quantizer.type": "ema", "codebook.revive": 2, "loss.lecam": 0.1}
UNIT = {"model.quantizer.unit": True, "codebook.revive": 2, "codebook.start": "kmeans"} | WITHOUT_DISCRIMINATOR
EMA = {
    "model.quantizer.type": "ema",
    "model.quantizer.size": 256,
    "ema.decay": 0.9,
    "ema.players": ("generator",),
} | WITHOUT_DISCRIMINATOR


def test_eight_devices_compute_what_one_does_with_a_codebook_of_unit_norm(run_steps):
    """The batch is split over both axes, parameters over one. In test_devices.py: an EMA codebook, a discriminator."""
    (*_, one), on_one = run_steps(UNIT)
    (*_, eight), on_eight = run_steps(UNIT, 8, fsdp=4)
    for a, b in zip(on_one, on_eight, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert_close(eight.params, one.params, 1e-5)
    assert_close(eight.extra, one.extra, 1e-5)


@pytest.mark.parametrize(
    "changes", [MOVING, {"codebook.start": "kmeans"} | WITHOUT_DISCRIMINATOR], ids=["ema", "kmeans"]
)
def test_micro_batches_change_the_codebook_once_and_by_the_whole_batch(run_steps, small, changes):
    (start, whole_batch), (metrics,) = run_steps(changes, batches=[small.batch])
    (_, accumulated), (accumulated_metrics,) = run_steps(changes, batches=[small.batch], accumulate=4)
    books = [
        state.extra["generator"].get("codebook") or state.params["generator"]["quantizer"]
        for state in (whole_batch, accumulated)
    ]
    for expected, actual in (books, (whole_batch.extra, accumulated.extra)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6), expected, actual)
    for name in ("usage", "perplexity"):
        np.testing.assert_allclose(accumulated_metrics[name], metrics[name], rtol=1e-6)
    if "codebook.start" in changes:
        assert np.abs(books[0]["codebook"] - start.params["generator"]["quantizer"]["codebook"]).max() > 0.01


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_a_run_from_weights_keeps_their_codebook(run_steps, small, kind, tmp_path):
    """Although its config asks for k-means, with which the codebook of a new run begins."""
    first = UNIT if kind == "nearest" else MOVING
    (*_, trained), _ = run_steps(first)
    options = small.config(**first).model
    variables = {"params": trained.params["generator"], **trained.extra["generator"]}
    vq = vqgan_jax.Vqgan.assemble(options, variables, "trained")
    vqgan_jax.save(vq, tmp_path / "first.safetensors")
    changes = {"pretrained": str(tmp_path / "first.safetensors"), "codebook.start": "kmeans"} | WITHOUT_DISCRIMINATOR
    (_, after), _ = run_steps(changes, batches=[small.batch], lr=0.0)
    if kind == "nearest":
        jax.tree.map(np.testing.assert_array_equal, after.params["generator"], trained.params["generator"])
    else:
        x = jnp.asarray(small.batch["image"] / 127.5 - 1, jnp.float32)
        z = jax.jit(lambda v, x: vq.module.apply(v, x, method="latents"))(vq.variables, x)
        book = jax.tree.map(jnp.asarray, trained.extra["generator"]["codebook"]["quantizer"])
        codes = quantize.nearest_codes(z, book["points"])
        expected = codebook.update_moving_means(book, codes, z, options.quantizer.decay)
        for name, value in after.extra["generator"]["codebook"]["quantizer"].items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def test_an_ema_codebook_is_averaged_with_its_encoder(run_steps):
    states, _ = run_steps(EMA | {"codebook.revive": 1})
    average = states[0].extra["averaged"].astype(np.float64)
    for updates, state in enumerate(states[1:]):
        book = state.extra["generator"]["codebook"]["quantizer"]
        points, revived = book["points"], np.all(book["total"] == book["points"], axis=1)  # so a revived code begins
        assert revived.any() == (updates > 0) and not revived.all()
        decay = min(0.9, (1 + updates) / (10 + updates))
        average = np.where(revived[:, None], points, average + (1 - decay) * (points - average))
        np.testing.assert_allclose(state.extra["averaged"], average, atol=1e-6)
    assert np.abs(average - points).max() > 1e-3, "an average that lags behind"
    variables = averaging.inference_variables({"generator": state.ema["generator"]}, state.extra)
    np.testing.assert_array_equal(variables["codebook"]["quantizer"]["points"], state.extra["averaged"])


def test_without_an_average_of_the_generator_that_of_its_ema_codebook_is_the_codebook(run_steps, small):
    """A resumed run can switch the average on and off: its checkpoint has the same arrays with and without."""
    off = EMA | {"ema.players": ("discriminator",)}
    assert averaging.get_decay(small.config(**off)) == averaging.get_decay(small.config(**EMA | {"ema.decay": 0.0})) == 0
    (*_, state), _ = run_steps(off)
    np.testing.assert_array_equal(state.extra["averaged"], state.extra["generator"]["codebook"]["quantizer"]["points"])


def test_the_average_of_an_ema_codebook_does_not_count_skipped_updates(run_steps, small):
    batch = {name: x.astype(np.float32) for name, x in small.batch.items()}
    bad = {name: np.full_like(x, np.nan) for name, x in batch.items()}
    (*_, good), _ = run_steps(EMA, batches=[batch] * 2)
    (*_, skipping), _ = run_steps(EMA, batches=[bad, bad, batch, batch])
    assert skipping.counters["skipped"] == 2
    jax.tree.map(np.testing.assert_array_equal, good.extra, skipping.extra)


@pytest.fixture(scope="module")
def with_adam(small, small_coders, make_trainer):
    """`(states, metrics)` of four updates with moments, after which codes are revived; the last loss is NaN."""
    made, params, extra = small.start(small.config(**{"codebook.revive": 1, "model.quantizer.size": 256}))

    def loss(params, extra, batch, rng, step):
        value, aux = made.loss(params, extra, batch, rng, step)
        return value + jnp.where(step == 3, jnp.nan, 0.0), aux

    def revise(*state):
        params, extra, moved, metrics = made.revise(*state)
        return params, extra, moved, metrics | {"moved": moved["generator/quantizer/codebook"]}

    instrumented = dataclasses.replace(made, loss=loss, revise=revise)
    return make_trainer(instrumented, params, extra, small.batch, optax.adam(1e-2), 1e-2).run([small.batch] * 4)


def test_a_revived_code_has_no_moments(with_adam):
    state, moved = with_adam[0][3], with_adam[1][2]["moved"]
    last, used = state.extra["usage"]["last"], state.extra["usage"]["share"] > 0
    book = state.params["generator"]["quantizer"]["codebook"]
    moments = state.opt_state[0].mu["generator"]["quantizer"]["codebook"]
    assert moved.any() and not moved.all() and used.any() and (last[moved] == 2).all()
    assert not np.any(moments[moved])
    assert np.any(moments[~moved])
    np.testing.assert_array_equal(state.ema["generator"]["quantizer"]["codebook"][moved], book[moved])


def test_an_update_with_a_loss_of_nan_changes_neither_player(with_adam):
    *_, before, after = with_adam[0]
    assert [metrics["skipped"] for metrics in with_adam[1]] == [0, 0, 0, 1]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.extra, after.extra)
