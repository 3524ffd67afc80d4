"""Samplers against diffusers' schedulers, step by step, and against closed forms for Gaussian data."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.unclip import samplers
from dalle_jax.unclip.diffusion import Diffusion

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "unclip"
MEAN, STD = 0.7, 0.3  # of Gaussian data


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "schedulers.npz") as file:
        return dict(file)


def keep(x0):
    return x0


def keys(count: int):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def test_timesteps_are_karlo_s():
    assert samplers.make_steps(Diffusion(), 7).t.tolist() == [999, 832, 666, 500, 333, 166, 0]
    t = samplers.make_steps(Diffusion(), 25).t.tolist()
    assert t[:7] == [999, 957, 916, 874, 832, 791, 749] and t[-3:] == [83, 42, 0]
    for count in (1, 1001):
        with pytest.raises(ValueError, match=f"{count} sampling steps; there must be 2 to 1000"):
            samplers.make_steps(Diffusion(), count)


CHAINS = {
    "fixed": (7, Diffusion(prediction="x0", x0_range=1.2), samplers.make_ancestral_update, {}),
    "learned": (7, Diffusion(learned_variance=True), samplers.make_ancestral_update, {}),
    "ddim-epsilon": (10, Diffusion(), samplers.make_ddim_update, {}),
    "ddim-v": (10, Diffusion(prediction="v"), samplers.make_ddim_update, {"eta": 0.6}),
    "ddim-x0": (10, Diffusion(prediction="x0", x0_range=0.9), samplers.make_ddim_update, {"eta": 1.0}),
    "ddim-threshold": (
        10,
        Diffusion(prediction="x0"),
        samplers.make_ddim_update,
        {"constrain": samplers.dynamic_threshold(0.8)},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_step_is_that_of_diffusers(name, golden):
    count, diffusion, make_update, options = CHAINS[name]
    steps, update = samplers.make_steps(diffusion, count), make_update(diffusion, **options)
    np.testing.assert_array_equal(steps.t, golden[f"{name}/t"])
    inputs = [golden[f"{name}/start"], *golden[f"{name}/x"][:-1]]
    chain = zip(golden[f"{name}/outputs"], inputs, golden[f"{name}/noises"], golden[f"{name}/x"], strict=True)
    for i, (output, x, noise, expected) in enumerate(chain):
        actual = update(*map(jnp.asarray, (output, x, noise)), jax.tree.map(lambda column, i=i: column[i], steps))
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5, err_msg=f"step {i}")


def test_inversion_is_that_of_diffusers(golden):
    steps, outputs = samplers.make_steps(Diffusion(), 10), jnp.asarray(golden["inverse/outputs"])

    def predict(x, t):
        return outputs[t[0] // 111]

    actual = samplers.invert(predict, jnp.asarray(golden["inverse/start"]), steps, Diffusion())
    np.testing.assert_allclose(actual, golden["inverse/x"][-1], rtol=2e-5, atol=2e-5)


def optimal(d: Diffusion):
    """The network with the least loss for data of N(MEAN, STD^2), which is linear, and the scale of x_t."""

    def predict(x, t):
        signal, sigma = d.levels(t, x.ndim)
        x0 = MEAN + STD**2 * signal / (STD**2 * signal**2 + sigma**2) * (x - signal * MEAN)
        return {"x0": x0, "epsilon": (x - signal * x0) / sigma, "v": (signal * x - x0) / sigma}[d.prediction]

    return predict


def flow(d: Diffusion, x0):
    """Where the probability flow of Gaussian data leads x0: each x_t keeps its distance from the mean, in deviations."""
    a = d.alpha_bar[-1]
    return np.sqrt(a) * MEAN + np.sqrt(STD**2 * a + 1 - a) * (x0 - MEAN) / STD


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_ddim_and_its_inversion_follow_the_probability_flow(prediction):
    d = Diffusion(prediction=prediction)
    x0 = jnp.linspace(-0.2, 1.6, 7)[:, None]
    predict, update = optimal(d), samplers.make_ddim_update(d, constrain=keep)
    errors = []
    for count in (50, 500):
        steps = samplers.make_steps(d, count)
        noise = samplers.invert(predict, x0, steps, d)
        sampled = samplers.sample(predict, jnp.asarray(flow(d, x0), jnp.float32), keys(7), steps, update)
        again = samplers.sample(predict, noise, keys(7), steps, update)
        errors.append([np.abs(x).max() for x in (noise - flow(d, x0), sampled - x0, again - x0)])
    assert np.max(errors[1]) < 0.03, errors
    assert np.all(np.array(errors[1]) < np.array(errors[0]) / 5), errors


@pytest.mark.parametrize("make_update", [samplers.make_ancestral_update, samplers.make_ddim_update])
def test_samples_of_gaussian_data_have_their_mean_and_deviation(make_update):
    d = Diffusion(x0_range=100.0)
    x = samplers.draw_noise(keys(4), d.timesteps, (5_000,))
    samples = samplers.sample(optimal(d), x, keys(4), samplers.make_steps(d, 300), make_update(d))
    assert np.mean(samples) == pytest.approx(MEAN, abs=0.01)
    assert np.std(samples) == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize("make_update", [samplers.make_ancestral_update, samplers.make_ddim_update])
def test_the_last_step_ends_at_the_clipped_prediction(make_update):
    d = Diffusion(prediction="x0", x0_range=0.5)
    x = samplers.sample(lambda x, t: x + 1, jnp.ones((2, 3)), keys(2), samplers.make_steps(d, 4), make_update(d))
    np.testing.assert_array_equal(x, np.full((2, 3), 0.5))


def test_an_example_does_not_depend_on_its_batch_and_parts_of_a_table_follow_each_other():
    d = Diffusion(x0_range=100.0)
    steps, update = samplers.make_steps(d, 6), samplers.make_ancestral_update(d)

    def draw(keys, steps):
        x = samplers.draw_noise(keys, d.timesteps, (2, 3))
        for part in steps:
            x = samplers.sample(optimal(d), x, keys, part, update)
        return x

    first, second = (jax.tree.map(lambda x, part=part: x[part], steps) for part in (np.s_[:-1], np.s_[-1:]))
    batch = draw(keys(5), [steps])
    np.testing.assert_array_equal(draw(keys(5)[3:4], [first, second]), batch[3:4])
    assert len(np.unique(batch)) == batch.size, "noise differs between examples and values"


@pytest.mark.parametrize("make_update", [samplers.make_ancestral_update, samplers.make_ddim_update])
def test_parts_of_a_sampling_are_the_sampling_and_tell_what_they_predict(make_update):
    d = Diffusion(prediction="x0", x0_range=100.0)
    steps, update = samplers.make_steps(d, 6), make_update(d)
    x = noise = samplers.draw_noise(keys(3), d.timesteps, (2,))
    for start, stop in ((0, 2), (2, 6)):
        before = samplers.sample(optimal(d), noise, keys(3), jax.tree.map(lambda x: x[: stop - 1], steps), update)  # noqa: B023
        x, x0 = samplers.sample_part(optimal(d), x, keys(3), steps, update, start, stop)
        np.testing.assert_allclose(x0, optimal(d)(before, jnp.full(3, steps.t[stop - 1])), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x, samplers.sample(optimal(d), noise, keys(3), steps, update), rtol=1e-5, atol=1e-6)


def test_guidance_weighs_pairs_of_rows_and_keeps_the_conditional_variance():
    condition = samplers.interleave({"c": jnp.array([[1.0], [2.0]])}, {"c": jnp.array([[0.0], [0.5]])})
    np.testing.assert_array_equal(condition["c"][:, 0], [1, 0, 2, 0.5])

    def predict(x, t):
        return jnp.concatenate([x * condition["c"] + t[:, None], 10 * condition["c"]], axis=-1)

    x, t = jnp.array([[3.0], [5.0]]), jnp.array([7, 8])
    actual = samplers.guide(predict, 3.0)(x, t)
    np.testing.assert_allclose(actual, [[3 * 3 + 7, 10], [2.5 + 3 * (10 - 2.5) + 8, 20]])
    np.testing.assert_allclose(samplers.guide(predict, 1.0)(x, t), predict(jnp.repeat(x, 2, 0), jnp.repeat(t, 2))[::2])


def test_scales_are_numbers_of_the_program_not_part_of_it():
    d = Diffusion()
    steps = samplers.make_steps(d, 3)

    @jax.jit
    def draw(eta, scale):
        predict = samplers.guide(lambda x, t: x, scale)
        return samplers.sample(predict, jnp.ones((2, 1)), keys(2), steps, samplers.make_ddim_update(d, eta))

    assert not np.array_equal(draw(0.0, 1.0), draw(1.0, 1.0))
    assert draw._cache_size() == 1
