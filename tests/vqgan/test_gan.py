"""The two-player loss against the textbook's two passes; losses against the papers' formulas; players kept apart.

Encoder and decoder are small here: the loss does not depend on them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from tests.trees import assert_close
from train_jax.compute import Compute
from train_jax.data.images import normalize
from vqgan_jax import discriminator, model, task
from vqgan_jax import loss as loss_lib
from vqgan_jax.gan import TwoPlayerLoss

pytestmark = pytest.mark.usefixtures("small_coders")

WITHOUT_DISCRIMINATOR = {"loss.adversarial": "none"}
LATE = 20  # an update at which the adversarial weight has risen


def gradients(loss, batch, params, extra, step=LATE):
    """Total, metrics, statistics and gradients of a task's loss."""
    batch = jax.tree.map(jnp.asarray, batch)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (total, (metrics, statistics)), grads = value_and_grad(params, extra, batch, jax.random.key(2), step)
    return total, metrics, statistics, grads


@pytest.fixture(scope="module")
def weighted(small, small_coders):
    """`(step, **weights of losses) -> gradients`, all by one program; and the config, parameters and extra state."""
    c = small.config(**{"loss.disc_start": 2, "loss.disc_warmup": 2, "loss.disc_ramp": 4})
    _, params, extra = small.start(c)

    @jax.jit
    def function(params, extra, step, weights):
        traced = ConfigDict(c.to_dict(), type_safe=False)
        traced.loss.update(weights)
        modules = model.build(c.model), discriminator.build(c.discriminator, Compute())
        two_player_loss = TwoPlayerLoss(*modules, None, traced, keeps_latents=False)

        def loss(params, extra, batch, rng, step):
            return two_player_loss(params, extra, normalize(batch["image"], task.HALF, task.HALF), rng, step)

        return gradients(loss, small.batch, params, extra, step)

    def call(step: int = LATE, *, weight: float = 0.5, pixel_weight: float = 1.0):
        return function(params, extra, step, {"weight": weight, "pixel_weight": pixel_weight})

    return call, (c, params, extra)


def textbook(c: ConfigDict, batch, params, extra, kind: str):
    """Both players' gradients by taming's recipe: one pass to balance, one for the generator, one for the discriminator."""
    module, critic = model.build(c.model), discriminator.build(c.discriminator, Compute())
    x = jnp.asarray(batch["image"] / 127.5 - 1, jnp.float32)

    def logits(d, images):
        return critic.apply({"params": d, **extra["discriminator"]}, images, True, mutable=["batch_stats"])[0]

    def forward(g):
        h, quantized = module.apply({"params": g}, x, False, 1.0, method="features")
        return module.apply({"params": g}, h, method="pixels"), quantized

    def nll_loss(g):
        return jnp.mean(jnp.abs(forward(g)[0] - x))

    def g_loss(g):
        return loss_lib.generator_loss(kind, logits(params["discriminator"], forward(g)[0]))

    def last_layer_norm(grads):
        return jnp.linalg.norm(grads["decoder"]["conv_out"]["kernel"].ravel())

    g = params["generator"]
    weight = jnp.clip(last_layer_norm(jax.grad(nll_loss)(g)) / (last_layer_norm(jax.grad(g_loss)(g)) + 1e-4), 0, 1e4)
    generator_grads = jax.grad(lambda g: nll_loss(g) + c.loss.weight * weight * g_loss(g) + forward(g)[1].loss)(g)
    fake = forward(g)[0]
    discriminator_grads = jax.grad(lambda d: loss_lib.discriminator_loss(kind, logits(d, x), logits(d, fake)))(
        params["discriminator"]
    )
    return {"generator": generator_grads, "discriminator": discriminator_grads}, weight


def check_textbook(c: ConfigDict, batch, params, extra, kind: str, metrics, grads) -> None:
    expected, weight = jax.jit(lambda p, e: textbook(c, batch, p, e, kind))(params, extra)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    for player in expected:
        assert_close(grads[player], expected[player])


def of_config(small, c: ConfigDict):
    made, params, extra = small.start(c)
    return jax.jit(functools.partial(gradients, made.loss, small.batch))(params, extra)


def test_one_backward_gives_the_gradients_of_the_textbook_s_three(small, weighted):
    call, (c, params, extra) = weighted
    _, metrics, _, grads = call()
    check_textbook(c, small.batch, params, extra, "hinge", metrics, grads)


def test_one_backward_gives_the_gradients_of_the_textbook_s_three_with_batch_norm(small):
    c = small.config(**{"loss.adversarial": "vanilla", "discriminator.norm": "batch"})
    _, metrics, _, grads = of_config(small, c)
    _, params, extra = small.start(c)
    check_textbook(c, small.batch, params, extra, "vanilla", metrics, grads)


def test_adversarial_losses_are_those_of_the_papers():
    """Hinge (1705.02894), cross-entropy of both players (1406.2661), and the generator's -mean of both in taming."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(0, 2, (3, 4, 4)).astype(np.float32) for _ in range(2))

    def cross_entropy(logits, label):
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return -np.mean(np.log(p if label else 1 - p))

    hinge = (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()) / 2
    entropy = (cross_entropy(real, 1) + cross_entropy(fake, 0)) / 2
    generator = {"hinge": -fake.mean(), "vanilla": -fake.mean(), "non_saturating": cross_entropy(fake, 1)}
    assert generator.keys() == set(loss_lib.ADVERSARIAL)
    for kind, expected in generator.items():
        np.testing.assert_allclose(loss_lib.generator_loss(kind, jnp.asarray(fake)), expected, rtol=1e-5)
        value = loss_lib.discriminator_loss(kind, jnp.asarray(real), jnp.asarray(fake))
        np.testing.assert_allclose(value, hinge if kind == "hinge" else entropy, rtol=1e-5)


def test_the_value_is_the_sum_of_the_reported_losses(weighted):
    total, metrics, _, _ = weighted[0]()
    expected = metrics["loss_pixels"] + metrics["loss_codebook"] + metrics["loss_discriminator"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    shares = [value for name, value in metrics.items() if name.startswith("gradient_share/")]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-5)


def test_the_generator_s_losses_do_not_change_the_discriminator_s_gradients(weighted):
    call, _ = weighted
    plain, changed = call()[3], call(weight=0.1, pixel_weight=3.0)[3]
    assert_close(changed["discriminator"], plain["discriminator"], 1e-6)
    assert not np.allclose(
        changed["generator"]["decoder"]["conv_out"]["kernel"], plain["generator"]["decoder"]["conv_out"]["kernel"]
    )


def test_the_discriminator_s_losses_do_not_change_the_generator_s_gradients(small, weighted):
    plain = weighted[0]()[3]
    penalised = of_config(small, small.config(**{"loss.lecam": 0.5, "loss.r1": 2.0}))[3]
    assert_close(penalised["generator"], plain["generator"], 1e-6)
    assert not np.allclose(penalised["discriminator"]["conv0"]["kernel"], plain["discriminator"]["conv0"]["kernel"])


class LinearPatches(nn.Module):
    """Logits of patches of 8 x 8 pixels, whose gradient is the parameter `weights` in each patch."""

    @nn.compact
    def __call__(self, images, train):
        b, h, w, _ = images.shape
        weights = self.param("weights", nn.initializers.normal(), (8, 8, 3))
        return jnp.einsum("bhiwjc,ijc->bhw", images.reshape(b, h // 8, 8, w // 8, 8, 3), weights)


@pytest.mark.parametrize("interval, steps", [(1, [3, 4, 5, 6, 7, 8]), (3, [3, 6])])
def test_lazy_r1_is_multiplied_by_its_interval(small, interval, steps):
    """For linear patches R1 is |weights|^2 / 2, with the gradient `weights`; their sums over 6 updates do not change."""
    c = small.config(**{"loss.r1": 0.7, "loss.r1_interval": interval, "loss.disc_start": 3})
    two_player_loss = TwoPlayerLoss(model.build(c.model), LinearPatches(), None, c, keeps_latents=False)
    weights, images = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(8, 8, 3), (2, 32, 32, 3)]))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=1)
    def penalty(step, weights):
        total, metrics, _ = two_player_loss.discriminator_loss(
            {"weights": weights}, {"discriminator": {}}, images, jnp.zeros_like(images), step
        )
        return total - metrics["loss_discriminator"]

    for step in range(3, 9):
        factor = 0.7 * interval * (step in steps)
        value, grad = penalty(jnp.asarray(step), weights)
        np.testing.assert_allclose(value, factor * 0.5 * np.sum(weights**2), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(grad, factor * weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [32, 64])
def test_r1_does_not_depend_on_the_size_of_images(side):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, side, side, 3)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8, 3)), jnp.float32)

    def linear(x):
        """Logits of patches that do not overlap: each has the gradient `weights` in its patch."""
        return jnp.einsum("bhiwjc,ijc->bhw", x.reshape(3, side // 8, 8, side // 8, 8, 3), weights)

    np.testing.assert_allclose(loss_lib.gradient_penalty(linear, x), 0.5 * jnp.sum(weights**2), rtol=1e-5)
    # One logit per image: R1 as published.
    penalty = loss_lib.gradient_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3)), x)
    np.testing.assert_allclose(penalty, 0.5 * np.mean(np.sum((2 * x) ** 2, axis=(1, 2, 3))), rtol=1e-5)


def test_r1_of_a_discriminator_is_alike_at_two_sizes(small):
    module = discriminator.build(small.config(**{"discriminator.channels": 4}).discriminator, Compute())
    penalties = []
    for side in (64, 128):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 3)), jnp.float32)
        variables = jax.jit(module.init)(jax.random.key(0), x)
        penalty = jax.jit(lambda v, x: loss_lib.gradient_penalty(lambda y: module.apply(v, y), x))
        penalties.append(float(penalty(variables, x)))
    assert 0.7 < penalties[0] / penalties[1] < 1.4


def test_an_adversarial_weight_of_0_trains_the_generator_as_without_a_discriminator(small, weighted):
    with_weight_0, without = weighted[0](weight=0.0)[3], of_config(small, small.config(**WITHOUT_DISCRIMINATOR))[3]
    assert_close(with_weight_0["generator"], without["generator"], 1e-6)


def count_convolutions(jaxpr, kernel: tuple[int, ...]) -> int:
    """Convolutions with a kernel of this shape."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            count += eqn.invars[1].aval.shape == kernel
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                count += count_convolutions(inner, kernel) if hasattr(inner, "eqns") else 0
    return count


def test_the_loss_and_its_gradient_hold_one_generator_forward(small):
    c = small.config(**{"model.z_channels": 24})  # only the encoder's convolution has 3 inputs and 24 outputs
    made, params, extra = small.start(c)

    def value(params):
        return made.loss(params, extra, jax.tree.map(jnp.asarray, small.batch), jax.random.key(2), jnp.asarray(5))[0]

    assert count_convolutions(jax.make_jaxpr(jax.grad(value))(params).jaxpr, (3, 3, 3, 24)) == 1


def test_the_discriminator_warms_up_before_the_adversarial_weight_rises(weighted):
    shares, trains = [], []
    for step in range(10):
        _, metrics, _, grads = weighted[0](step)
        shares.append(float(metrics["gradient_share/adversarial"]))
        trains.append(bool(optax.tree.norm(grads["discriminator"]) > 0))
    assert trains == [step >= 2 for step in range(10)]
    assert shares[:4] == [0] * 4 and np.all(np.diff(shares[3:8]) > 0)
    np.testing.assert_allclose(shares[7:], shares[7], rtol=1e-5)
    assert [round(float(loss_lib.ramp(s, 2 + 2, 4)), 4) for s in range(3, 9)] == [0, 0.25, 0.5, 0.75, 1, 1]
