"""The autoregressive prior: its codes against scikit-learn's PCA, its samples against a twin without a cache, a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict
from sklearn.decomposition import PCA

from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip import prior_task
from dalle_jax.unclip.autoregressive_prior import AutoregressivePrior, draw_upper_half
from dalle_jax.unclip.diffusion import Diffusion
from dalle_jax.unclip.frozen_clip import text_tower
from dalle_jax.unclip.options import PriorModelOptions, PriorOptions
from dalle_jax.unclip.prior import make_seeds
from dalle_jax.unclip.text_features import TextFeatures, encode_text
from train_jax import config as config_lib
from train_jax.compute import TransformerCompute
from train_jax.data import sources

DIM, COMPONENTS, BUCKETS, RANGE = 6, 3, 10, 5
RNG = np.random.default_rng(0)


def build(**changes) -> AutoregressivePrior:
    sizes = {"width": 16, "depth": 2, "heads": 2, "embed_dim": DIM, "text_length": 4}
    options = PriorOptions(**sizes | {"type": "autoregressive", "components": COMPONENTS, "buckets": BUCKETS} | changes)
    return AutoregressivePrior.build(options, TransformerCompute())


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Correlated embeddings with a mean."""
    return (RNG.standard_normal((500, DIM)) @ RNG.standard_normal((DIM, DIM)) + 3).astype(np.float32)


@pytest.mark.parametrize("buckets", [BUCKETS, 1024])
def test_codes_restore_the_leading_principal_components_to_half_a_bucket(embeddings, buckets):
    model, pca = build(buckets=buckets), PCA().fit(embeddings.astype(np.float64))
    covariance = np.cov(embeddings, rowvar=False, bias=True).astype(np.float32)
    statistics = model.measure(embeddings.mean(axis=0), covariance)
    assert statistics["std"] == pytest.approx(embeddings.std(axis=0), rel=1e-4)
    text = RNG.standard_normal(embeddings.shape).astype(np.float32)
    far = embeddings + 100 * (np.arange(len(embeddings)) == 0)[:, None] * pca.components_[0].astype(np.float32)
    codes = np.asarray(model.encode(statistics, jnp.asarray(far), jnp.asarray(text)))
    assert codes.shape == (500, 1 + COMPONENTS) and codes.min() >= 0 and codes.max() == buckets - 1
    restored = np.asarray(model.restore(statistics, jnp.asarray(codes)))
    expected, found = pca.transform(embeddings), pca.transform(restored)
    deviations = pca.transform(embeddings).std(axis=0)
    errors = abs(found - expected)[:, :COMPONENTS] / deviations[:COMPONENTS]
    assert errors[1:].max() < 1.001 * RANGE / buckets and errors[1:].max() > 0.9 * RANGE / buckets
    outlier = abs(found[0, 0]) / deviations[0]  # in the last bucket
    assert outlier == pytest.approx(RANGE - RANGE / buckets, rel=1e-3)
    np.testing.assert_allclose(found[:, COMPONENTS:], 0, atol=1e-4)
    cosines = np.sum(far * text, axis=1) / np.linalg.norm(far, axis=1) / np.linalg.norm(text, axis=1)
    assert abs((codes[:, 0] + 0.5) / buckets * 2 - 1 - cosines).max() < 1.001 / buckets


def test_a_component_without_variance_is_its_mean(embeddings):
    model = build(components=DIM)
    flat = embeddings * (np.arange(DIM) > 0)
    statistics = model.measure(flat.mean(axis=0), np.cov(flat, rowvar=False, bias=True).astype(np.float32))
    codes = model.encode(statistics, jnp.asarray(flat), jnp.asarray(flat))
    np.testing.assert_allclose(model.restore(statistics, codes)[:, 0], 0, atol=1e-4)


def test_the_upper_half_is_that_of_the_distribution():
    """Exactly: the bucket with the median is divided."""
    logits = jnp.log(jnp.array([0.3, 0.4, 0.2, 0.1]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    codes = jax.jit(jax.vmap(draw_upper_half, in_axes=(0, None)))(keys, logits)
    np.testing.assert_allclose(np.bincount(codes, minlength=4) / len(codes), [0, 0.4, 0.4, 0.2], atol=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Network

GUIDANCE, SAMPLES = 1.7, 3  # of each text


@pytest.fixture(scope="module")
def network():
    """`(model, parameters, two texts, the empty text)`: random parameters, with which everything matters."""
    model = build()
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), 5))
    params = jax.tree.map(lambda x: RNG.normal(0, 0.4, x.shape).astype(np.float32), params)

    def make_text(lengths):
        shapes = ((len(lengths), DIM), (len(lengths), 4, 5))
        arrays = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in shapes)
        return TextFeatures(*arrays, jnp.arange(4)[None] < jnp.array(lengths)[:, None])

    return model, params, make_text([4, 2]), make_text([1])


def repeat(text: TextFeatures, count: int) -> TextFeatures:
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), text)


@pytest.fixture(scope="module")
def logits(network):
    """`logits(text, codes)`: those of the whole sequences, without a cache."""
    model, params = network[:2]
    return jax.jit(lambda text, codes: model.network.apply({"params": params}, text, codes)[1])


@pytest.mark.parametrize("guided", [False, True])
def test_samples_are_those_of_a_sampler_without_a_cache(network, logits, guided):
    """Every code is drawn with the noise of its key and position from the logits of the sequence before it."""
    model, params, text, null = network
    keys = jax.random.split(jax.random.key(1), 2 * SAMPLES)
    sample = jax.jit(lambda null: model.sample(params, text, null, keys, None, GUIDANCE))
    codes = np.asarray(sample(null if guided else None))
    assert codes.shape == (6, 1 + COMPONENTS) and len({tuple(row) for row in codes}) == 6
    conditional = np.asarray(logits(repeat(text, SAMPLES), codes), np.float64)
    unconditional = np.asarray(logits(repeat(null, 2 * SAMPLES), codes), np.float64)
    guidance = GUIDANCE if guided else 1
    total = unconditional + guidance * (conditional - unconditional)
    for row, key in enumerate(keys):
        for position in range(1, 1 + COMPONENTS):
            noise = jax.random.gumbel(jax.random.fold_in(key, position), (BUCKETS,))
            assert codes[row, position] == np.argmax(total[row, position] + noise)
        quantile = float(jax.random.uniform(jax.random.fold_in(key, 0), minval=0.5))
        probabilities = scipy.special.softmax(conditional[row, 0])
        assert codes[row, 0] == np.searchsorted(np.cumsum(probabilities), quantile), "of the text, not guided"


def test_the_loss_is_the_mean_negative_log_likelihood_and_padding_does_not_matter(network, logits):
    model, params, text, _ = network
    codes = RNG.integers(0, BUCKETS, (2, 1 + COMPONENTS)).astype(np.int32)
    log_probs = scipy.special.log_softmax(np.asarray(logits(text, codes), np.float64), axis=-1)
    expected = -np.take_along_axis(log_probs, codes[..., None], axis=-1).mean()
    loss, metrics = jax.jit(lambda text: model.loss(params, jnp.asarray(codes), text, jax.random.key(0)))(text)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["bits_per_code"]) == pytest.approx(expected / np.log(2), rel=1e-5)
    padded = text._replace(states=text.states.at[1, 2:].add(1.0))
    np.testing.assert_array_equal(logits(padded, codes), logits(text, codes))
    for other in (text._replace(states=text.states.at[1, 1].add(1.0)), text._replace(embedding=text.embedding + 1)):
        assert abs(logits(other, codes) - logits(text, codes))[1].min() > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_of_four_images_of_a_text_it_samples_the_two_closest_to_it(tiny_prior, clip, learn, tmp_path):
    """The least loss is log 4 a sequence, and the upper half of the cosines are the two largest; also when reloaded."""
    plain = tiny_prior[0].to_dict()
    model = plain["model"] | {"type": "autoregressive", "components": 5, "buckets": 256}
    changes = {"model": model, "condition_dropout": 0.0, "optim": {"lr": 1e-2}, "ema": {"decay": 0.0}, "steps": 300}
    config = config_lib.resolve(ConfigDict(plain | changes))
    task = prior_task.make(config, None)
    records = task.records(sources.from_config(config.data))
    rows = [task.example(records[i], np.random.default_rng(i)) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["text"] = np.repeat(clip.tokenizer.encode(["the digit one", "a handwritten two"]), 4, axis=0)
    state, history = learn(task, config, batch, 300)
    assert np.log(4) / 6 < float(history[-1]["loss"]) < np.log(4) / 6 + 0.02

    checkpoint = prior_lib.PriorCheckpoint(
        name="toy",
        options=prior_lib.complete_options(PriorModelOptions.parse(config.model, "model"), clip.module.options),
        diffusion=Diffusion(),
        clip=clip.fingerprint,
        compute=TransformerCompute(scan=False),
        read=lambda: (state.params["prior"], {name: x for name, x in state.extra.items() if name != "text"}),
    )
    (tmp_path / "prior.safetensors").write_bytes(prior_lib.to_bytes(checkpoint))
    ids, seeds = batch["text"][[0, 4]].repeat(10, axis=0), make_seeds(["one", "two"], [0, 0], 10, 0).reshape(-1, 3)
    priors = [
        x.load(text_tower(clip.module), clip.variables["params"]["text"], clip.tokenizer, None)
        for x in (checkpoint, prior_lib.open_checkpoint(tmp_path / "prior.safetensors"))
    ]
    drawn, again = (prior.draw(ids, seeds, candidates=1) for prior in priors)
    np.testing.assert_array_equal(drawn, again)
    text = np.asarray(encode_text(text_tower(clip.module), state.extra["text"], jnp.asarray(batch["text"])).embedding)
    model = priors[0].stage.model
    codes = model.encode(state.extra, jnp.asarray(batch["embedding"]), jnp.asarray(text))
    images = np.asarray(model.restore(state.extra, codes))
    distances = np.linalg.norm(drawn[:, None] - images[None], axis=-1)
    assert distances.min(axis=1) == pytest.approx(0, abs=1e-4)
    nearest = distances.argmin(axis=1).reshape(2, 10)
    largest = [4 * row + np.argsort(np.asarray(codes[4 * row :][:4, 0]))[2:] for row in range(2)]
    for row, expected in zip(nearest, largest, strict=True):
        assert set(expected) <= set(row) and np.mean(np.isin(row, expected)) >= 0.9
