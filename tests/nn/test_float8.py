"""Products in float8, against NumPy's product of numbers rounded by ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nn_jax.float8 import float8_dot, round_to_float8
from nn_jax.transformer import Transformer

RNG = np.random.default_rng(0)


def rounded(x, dtype) -> np.ndarray:
    """The float64 values of an array in float8, scaled by its largest value."""
    scale = np.float32(np.abs(x).max() / np.float32(ml_dtypes.finfo(dtype).max))
    return (np.asarray(x, np.float32) / scale).astype(dtype).astype(np.float64) * scale


def test_products_and_gradients_are_those_of_rounded_numbers():
    x, kernel = RNG.standard_normal((5, 4, 6)), RNG.standard_normal((4, 6, 3))
    gradient = 1e-6 * RNG.standard_normal((5, 3)).astype(np.float32)
    y, pullback = jax.vjp(lambda *a: float8_dot(*a, 2), jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    x, kernel = (rounded(z, ml_dtypes.float8_e4m3fn) for z in (x, kernel))
    np.testing.assert_allclose(y, np.einsum("bij,ijo->bo", x, kernel), rtol=1e-5, atol=1e-5)
    d_x, d_kernel = pullback(jnp.asarray(gradient))
    gradient = rounded(gradient, ml_dtypes.float8_e5m2)
    np.testing.assert_allclose(d_x, np.einsum("bo,ijo->bij", gradient, kernel), rtol=1e-5, atol=1e-11)
    np.testing.assert_allclose(d_kernel, np.einsum("bij,bo->ijo", x, gradient), rtol=1e-5, atol=1e-11)


def test_results_are_of_the_activations_dtype_and_gradients_of_the_parameters():
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))
    y, pullback = jax.vjp(lambda *a: float8_dot(*a, 1), x, kernel)
    assert (y.dtype, *(g.dtype for g in pullback(y))) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
@pytest.mark.parametrize("values", [[0.0, 0.0], [1e30, -1.0], [-3e-30, 1e-30], [448.0, 7.0], [1e-36, 0.0]])
def test_rounding_neither_overflows_nor_divides_by_zero(values, dtype):
    x = jnp.asarray(values)
    result, scale = round_to_float8(x, dtype)
    largest = float(jnp.abs(x).max())
    assert float(jnp.abs(result.astype(jnp.float32) * scale).max()) == pytest.approx(largest, rel=1e-6)
    np.testing.assert_allclose(result.astype(jnp.float32) * scale, x, atol=largest / 2**3)


def test_a_transformer_in_float8_is_near_and_counts_four_products_a_block():
    x = jnp.asarray(RNG.standard_normal((2, 5, 16)), jnp.float32)
    exact, short = (Transformer(16, 2, 2, scan=False, float8=float8) for float8 in (False, True))
    params = jax.jit(exact.init)(jax.random.key(0), x)
    expected, actual = exact.apply(params, x), short.apply(params, x)
    assert 0 < float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)) < 0.1
    program = str(jax.make_jaxpr(short.apply)(params, x))
    assert program.count("custom_vjp_call[") == 2 * 4 and "f8_e4m3fn" in program
