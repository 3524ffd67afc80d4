"""PSNR and SSIM against loops over pixels; evaluators through a trained run."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax import config as config_lib
from train_jax import sharding
from train_jax.data.images import Preprocess
from train_jax.data.sources import DataError, Source
from train_jax.datasets import digits
from train_jax.errors import ConfigError
from train_jax.evaluation.evaluators import Context
from vqgan_jax import evaluators, features, metrics, task

RNG = np.random.default_rng(0)


def test_psnr_in_closed_form():
    original = jnp.full((2, 8, 8, 3), 0.5)
    reconstruction = original + jnp.asarray([0.1, 0.01])[:, None, None, None]
    np.testing.assert_allclose(metrics.psnr(reconstruction, original), [20, 40], rtol=1e-4)
    np.testing.assert_allclose(metrics.psnr(original, original), 100)


def test_ssim_by_loops_over_windows():
    a, b = RNG.random((2, 14, 13, 3)), RNG.random((2, 14, 13, 3))
    b = 0.5 * a + 0.5 * b
    offsets = np.arange(11) - 5
    bell = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    bell /= bell.sum()
    expected = []
    for x, y in zip(a, b, strict=True):
        values = []
        for c in range(3):
            for top in range(4):
                for left in range(3):
                    p, q = (z[top : top + 11, left : left + 11, c] for z in (x, y))
                    mp, mq = (bell * p).sum(), (bell * q).sum()
                    vp, vq = (bell * (p - mp) ** 2).sum(), (bell * (q - mq) ** 2).sum()
                    cov = (bell * (p - mp) * (q - mq)).sum()
                    values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected.append(np.mean(values))
    ssim = metrics.ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(ssim, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.ssim(jnp.asarray(a, jnp.float32), jnp.asarray(a, jnp.float32)), 1, rtol=1e-6)


def test_ssim_needs_pictures_as_large_as_its_window():
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(jnp.zeros((1, 8, 16, 3)), jnp.zeros((1, 8, 16, 3)))


def test_a_second_evaluation_compiles_nothing(tiny, trained, compilations):
    config = config_lib.resolve(tiny[0])
    made = task.make(config, tiny[1])
    context = Context(sharding.make_mesh(config.mesh), config)
    params = {"generator": trained.variables["params"]}
    weights = jax.device_get((params, {"generator": {"codebook": trained.variables["codebook"]}}))
    evaluate = [made.evaluators[config.evals[name].type](config.evals[name], context) for name in ("test", "oracle")]
    with jax.set_mesh(context.mesh):
        first = [one(*weights)[0] for one in evaluate]
        compilations.clear()
        assert [one(*weights)[0] for one in evaluate] == first
    assert not compilations, "two batches, of 16 and of 8 pictures; originals are gathered, too"


def test_few_pictures_are_in_memory_while_collections_are_compared(tiny, trained, monkeypatch):
    """Each batch becomes features before the third one is read."""
    config = config_lib.resolve(tiny[0])
    made = task.make(config, tiny[1])
    context = Context(sharding.make_mesh(config.mesh), config)
    dtypes, batches = [], Context.batches
    network = features.Features("mean", lambda x: dtypes.append(x.dtype) or x.mean((1, 2)).astype(np.float32), False)
    monkeypatch.setattr(evaluators, "open_features", lambda spec: network)

    def watched(self, *arguments):
        for index, batch in enumerate(batches(self, *arguments)):
            assert len(dtypes) >= 2 * (index - 1)
            yield batch

    monkeypatch.setattr(Context, "batches", watched)
    options = evaluators.EVALUATORS["distribution"].defaults()
    options.batch_size = 8
    params = {"generator": trained.variables["params"]}
    weights = jax.device_get((params, {"generator": {"codebook": trained.variables["codebook"]}}))
    with jax.set_mesh(context.mesh):
        results, _ = made.evaluators["distribution"](options, context)(*weights)
    assert results["images"] == 24 and set(dtypes) == {np.dtype(np.uint8)} and len(dtypes) == 6


def test_what_pictures_cannot_meet_is_told_before_any_work(small, monkeypatch):
    monkeypatch.setattr(evaluators, "open_features", lambda spec: None)
    source = Source("some", [{"id": "0"}], read=digits.read)
    context = types.SimpleNamespace(source_of=lambda options: source)

    def make(name: str, size: int):
        made = task.make(small.config(**{"model.resolution": size, "loss.adversarial": "none"}), None)
        return made.evaluators[name](evaluators.EVALUATORS[name].defaults(), context)

    with pytest.raises(ConfigError, match="SSIM, which needs images of at least 11 x 11 pixels; those of .* have 8 x 8"):
        make("reconstruction", 8)
    with pytest.raises(DataError, match=r"some: .* side divisible by 8, not \[12, 12, 3\]"):
        make("reading", 12)
    with pytest.raises(DataError, match="some: distances of collections need two or more images, not 1"):
        make("distribution", 8)
    with pytest.raises(ConfigError, match="resolution = 8; it must be at least 16 for perceptual.type = 'lpips'"):
        small.config(**{"model.resolution": 8, "perceptual.type": "lpips"})
    # Readings need no SSIM.
    model = make("reading", 8)._model
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), np.uint8)
    variables = jax.eval_shape(model.module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    weights = {"generator": variables.pop("params")}, {"generator": variables}
    values, _, pixels = jax.eval_shape(model._reconstruct, *weights, {"image": x})
    assert values.keys() == {"psnr", "l1"} and pixels.shape == x.shape


class Echo(evaluators.EvaluatedModel):
    """A model whose reconstruction of every second image is black."""

    def iterate_reconstructions(self, options, context, records, params, extra):
        originals = np.stack([record["pixels"] for record in records])
        reconstructions = originals * (np.arange(len(originals)) % 2)[:, None, None, None].astype(np.uint8)
        yield originals, ({}, None, reconstructions), len(originals)

    preprocess = Preprocess(2)

    def __init__(self):
        pass  # no network


@pytest.mark.parametrize(("accuracy", "reported"), [({}, {}), ({"concept": 0.75}, {"reader_accuracy/concept": 0.75})])
def test_what_is_read_is_reported_with_the_accuracy_of_the_reader(accuracy, reported):
    records = [{"pixels": np.full((2, 2, 3), 100 + n, np.uint8)} for n in range(5)]
    source = Source("some", records, read=lambda image: int(image.sum()), reader_accuracy=accuracy)
    context = types.SimpleNamespace(source_of=lambda options: source)
    options = evaluators.EVALUATORS["reading"].defaults()
    metrics, _ = evaluators.Reading(Echo(), options, context)({}, {})
    assert metrics == {"same": 0.4, "images": 5} | reported
