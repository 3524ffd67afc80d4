"""Schedules, predictions and losses against published numbers, IDDPM's own code (`tests/golden/make_unclip.py`) and sums."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.unclip import diffusion as lib
from dalle_jax.unclip.diffusion import Diffusion
from train_jax.errors import ConfigError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "unclip"
PREDICTIONS = ("x0", "epsilon", "v")


def test_the_cosine_schedule_has_the_values_of_karlo_s():
    d = Diffusion()
    np.testing.assert_allclose(d.betas[[0, 998, 999]], [4.12842e-05, 0.749999, 0.999], rtol=2e-6)
    expected = [0.99995869, 0.84588802, 0.49228504, 0.14317866, 2.4287e-09]  # float32 sums
    np.testing.assert_allclose(d.alpha_bar[[0, 250, 500, 750, 999]], expected, rtol=1e-4)


def test_the_linear_schedule_is_ddpm_s_for_any_number_of_timesteps():
    d = Diffusion(schedule="linear")
    np.testing.assert_allclose(d.betas[[0, 999]], [1e-4, 0.02])
    assert np.log(d.alpha_bar[-1]) == pytest.approx(np.log(Diffusion("linear", 4000).alpha_bar[-1]), rel=0.01)
    with pytest.raises(ConfigError, match="config.diffusion.timesteps = 20; it must be larger for the linear schedule"):
        Diffusion.parse({"schedule": "linear", "timesteps": 20}, "diffusion")


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    x0, noise = (jnp.asarray(rng.standard_normal((4, 3, 2)), jnp.float32) for _ in range(2))
    return x0, noise, jnp.array([0, 10, 500, 900])


def test_noised_data_keep_their_variance(example):
    x0, noise, t = example
    x = lib.add_noise(Diffusion(), x0, noise, t)
    a = Diffusion().alpha_bar[np.asarray(t)][:, None, None]
    np.testing.assert_allclose(x, np.sqrt(a) * x0 + np.sqrt(1 - a) * noise, rtol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_right_prediction_implies_data_and_noise(example, prediction):
    x0, noise, t = example
    d = Diffusion(prediction=prediction)
    x, levels = lib.add_noise(d, x0, noise, t), d.levels(t, x0.ndim)
    implied = lib.to_x0(prediction, lib.target(d, x0, noise, t), x, *levels)
    np.testing.assert_allclose(implied, x0, atol=1e-5)
    np.testing.assert_allclose(lib.to_epsilon(implied, x, *levels), noise, atol=2e-4)  # sigma_0 is 0.006
    assert float(lib.losses(d, lib.target(d, x0, noise, t), x0, noise, t)["mse"].max()) == 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0_whatever_is_predicted(example, prediction):
    x0, noise, t = example
    d = Diffusion(prediction=prediction)
    x, levels = lib.add_noise(d, x0, noise, t), d.levels(t, x0.ndim)
    output = lib.target(d, x0, noise, t) + 0.1 * jnp.sin(jnp.arange(24.0)).reshape(x0.shape)
    error = np.square(lib.to_x0(prediction, output, x, *levels) - x0).mean((1, 2))
    snr = (d.alpha_bar / (1 - d.alpha_bar))[np.asarray(t)]
    actual = lib.losses(d, output, x0, noise, t, min_snr=5.0)["mse"]
    np.testing.assert_allclose(actual, np.minimum(snr, 5.0) * error, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "x0"])
def test_the_hybrid_loss_and_its_gradient_are_iddpm_s(prediction):
    """The gradient shows that the bound trains the variance alone."""
    with np.load(GOLDEN / "losses.npz") as file:
        golden = {name: jnp.asarray(x) for name, x in file.items()}
    d = Diffusion(prediction=prediction, learned_variance=True)

    def loss(output):
        terms = lib.losses(d, output, golden["x0"], golden["noise"], golden["t"])
        return jnp.sum(terms["mse"] + terms["bound"]), terms

    (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(golden[f"{prediction}/output"])
    np.testing.assert_allclose(terms["mse"], golden[f"{prediction}/mse"], rtol=1e-5)
    np.testing.assert_allclose(terms["bound"], golden[f"{prediction}/bound"], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, golden[f"{prediction}/gradient"], rtol=1e-3, atol=1e-6)


def test_likelihoods_of_all_values_of_a_pixel_sum_to_1():
    d = Diffusion(learned_variance=True)
    x0 = jnp.linspace(-1, 1, 256).reshape(256, 1)
    t, noise = jnp.zeros(256, jnp.int32), jnp.full((256, 1), 0.3)
    x = jnp.full((256, 1), 0.1)  # the model's input is the same for all values
    bits = lib.variational_bound(d, noise, jnp.full((256, 1), -0.5), x0, x, t)
    assert float(jnp.sum(2.0**-bits)) == pytest.approx(1, abs=1e-4)


def test_the_bound_of_the_true_posterior_is_0(example):
    x0, noise, t = example
    d = Diffusion(learned_variance=True)
    bound = lib.variational_bound(d, noise, -jnp.ones_like(noise), x0, lib.add_noise(d, x0, noise, t), t)
    np.testing.assert_allclose(bound[1:], 0, atol=1e-4)
