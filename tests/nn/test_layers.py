"""Small layers against loops and closed forms in NumPy, float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax import convolution, layers

DRAW = np.random.default_rng(0)


def normal(*shape):
    return DRAW.standard_normal(shape).astype(np.float32)


def values(tree):
    """Parameters without the boxes that carry axis names, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(getattr(x, "value", x)), tree, is_leaf=lambda x: hasattr(x, "names"))


@pytest.mark.parametrize(
    "name, exact",
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
    ],
)
def test_activations_are_the_three_that_weights_are_trained_with(name, exact):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = [exact(float(v)) for v in x]
    np.testing.assert_allclose(layers.ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


def test_dense_sums_over_several_axes():
    module = layers.Dense((3, 4), ("heads", "head_dim", "mlp", "embed"), 0.5, jnp.float32, inputs=2)
    x = normal(2, 5, 6, 7)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    kernel, bias = values(variables)["params"]["kernel"], normal(3, 4)
    assert kernel.shape == (6, 7, 3, 4)
    expected = np.einsum("abij,ijkl->abkl", x, kernel, dtype=np.float64) + bias
    np.testing.assert_allclose(jax.jit(module.apply)({"params": {"kernel": kernel, "bias": bias}}, x), expected, atol=1e-5)


def test_dense_sums_in_out_dtype_what_it_multiplies_in_dtype():
    x, kernel, bias = jnp.asarray(normal(5, 64), jnp.bfloat16), normal(64, 7), normal(7)
    module = layers.Dense((7,), ("embed", "vocab"), 0.02, jnp.bfloat16, out_dtype=jnp.float32)
    actual = jax.jit(module.apply)({"params": {"kernel": kernel, "bias": bias}}, x)
    short = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float64)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, np.asarray(x, np.float64) @ short + bias, rtol=1e-6, atol=1e-5)


def test_dense_draws_its_kernel_with_the_deviation_it_is_given():
    module = layers.Dense((500,), ("embed", "mlp"), 0.03, jnp.float32)
    params = values(jax.jit(module.init)(jax.random.key(0), normal(1, 400)))["params"]
    assert abs(params["kernel"].std() - 0.03) < 3e-4  # of 200,000 draws; six deviations of the estimate
    assert not params["bias"].any()


@pytest.mark.parametrize("kernel, stride, before", [(4, 4, 0), (3, 2, 0), (1, 1, 0)])
def test_convolution_by_loops(kernel, stride, before):
    x = normal(2, 8, 8, 3)
    axes = ("channels_in", "channels_out")
    module = convolution.Conv(5, kernel, jnp.float32, stride=stride, axes=axes, std="he")
    params = values(jax.jit(module.init)(jax.random.key(0), jnp.asarray(x)))["params"]
    params["bias"] = normal(5)
    actual = np.asarray(jax.jit(module.apply)({"params": params}, jnp.asarray(x)))
    padded = np.pad(x.astype(np.float64), ((0, 0), (before, 2), (before, 2), (0, 0)))
    side = 8 // stride
    expected = np.zeros((2, side, side, 5))
    for row in range(side):
        for column in range(side):
            window = padded[:, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
            expected[:, row, column] = np.einsum("bijc,ijcd->bd", window, params["kernel"]) + params["bias"]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_layer_norm_adds_its_eps_to_the_variance(eps):
    x = (1e-2 * normal(6, 16)).astype(np.float32)  # a variance of 1e-4, so that eps is seen
    scale, bias = normal(16), normal(16)
    actual = layers.layer_norm(eps, jnp.float32, "norm").apply({"params": {"scale": scale, "bias": bias}}, x)
    x = x.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_layer_norm_keeps_its_digits_beside_a_large_mean():
    x = normal(6, 64) + 100
    actual = layers.layer_norm(1e-5, jnp.float32, "norm").apply(
        {"params": {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}}, x
    )
    x = x.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_group_norm_keeps_its_digits_beside_a_large_mean():
    x = normal(2, 5, 6, 8) + 300
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    actual = layers.group_norm(2, jnp.float32, "norm").apply({"params": {"scale": ones, "bias": zeros}}, x)
    groups = x.astype(np.float64).reshape(2, 30, 2, 4)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    np.testing.assert_allclose(actual, ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape), atol=1e-3)


def test_normalize_gives_unit_vectors_in_float32_and_is_harmless_at_zero():
    x = jnp.asarray(normal(5, 8), jnp.bfloat16)
    actual = jax.jit(layers.l2_normalize)(x)
    assert actual.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(actual, exact / np.linalg.norm(exact, axis=-1, keepdims=True), atol=1e-6)
    zero = jnp.zeros((2, 8))
    assert not layers.l2_normalize(zero).any()
    assert jnp.isfinite(jax.jit(jax.grad(lambda v: layers.l2_normalize(v).sum()))(zero)).all()
