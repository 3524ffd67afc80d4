"""Against lax's own convolution and its gradients; and the form of its gradient in a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType

from nn_jax import convolution
from nn_jax.convolution import DepthwiseConv, convolve

RNG = np.random.default_rng(0)
ORDER = ("NHWC", "HWIO", "NHWC")
LAX = functools.partial(lax.conv_general_dilated, dimension_numbers=ORDER)


def arrays(*shapes):
    return [jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    "side, padding", [(1, "VALID"), (3, "SAME"), (4, "SAME"), (3, "VALID"), (3, ((1, 1), (1, 1))), (3, ((0, 2), (1, 0)))]
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_value_and_gradients_are_laxs(side, padding, strides):
    x, kernel = arrays((2, 7, 9, 3), (side, side, 3, 5))

    def compute(convolution):
        @jax.jit
        def value_and_gradients(x, kernel):
            y, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, strides, padding), x, kernel)
            return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

        return value_and_gradients(x, kernel)

    (y, grads), (expected_y, expected_grads) = compute(convolve), compute(LAX)
    np.testing.assert_array_equal(y, expected_y)
    for actual, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_derivatives_in_both_directions_and_of_second_order():
    x, kernel, dx, dkernel = arrays((2, 5, 6, 3), (3, 3, 3, 4), (2, 5, 6, 3), (3, 3, 3, 4))

    def value(convolution):
        return lambda x, kernel: jnp.sum(jnp.sin(convolution(x, kernel, (1, 1), "SAME")))

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(f, x, kernel, dx, dkernel):
        tangents = ((dx, dkernel), (dx, 0 * dkernel), (0 * dx, dkernel))
        forward = [jax.jvp(f, (x, kernel), tangent)[1] for tangent in tangents]
        both = jax.jvp(jax.grad(f, (0, 1)), (x, kernel), (dx, dkernel))[1]
        second = jax.grad(lambda x: jnp.sum(jax.grad(f)(x, kernel) ** 2))(x)
        mapped = jax.vmap(jax.grad(f), (0, None))(x[:, None], kernel)
        return forward, both, second, mapped

    actual, expected = (derivatives(value(f), x, kernel, dx, dkernel) for f in (convolve, LAX))
    tolerances = ({"rtol": 1e-5}, {"atol": 1e-4}, {"atol": 1e-3}, {"atol": 1e-5})
    for ours, theirs, tolerance in zip(actual, expected, tolerances, strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), ours, theirs)


@pytest.mark.parametrize(
    "shape, features, side, stride, padding",
    [
        ((1, 64, 64, 20), 18, 3, 1, "SAME"),
        ((2, 67, 40, 18), 17, 3, 1, "SAME"),  # 3 x 2 tiles of 23 x 20 positions, one example each
        ((2, 71, 90, 18), 17, 4, 2, ((1, 1), (1, 1))),
        ((1, 70, 96, 17), 18, 3, 2, ((0, 1), (0, 1))),
        ((6, 24, 24, 17), 19, 5, 1, "VALID"),  # tiles of two examples
        ((2, 65, 40, 17), 17, 3, 3, "VALID"),  # the last rows and columns are in no window
        ((3, 9, 7, 19), 17, 1, 1, "VALID"),
        ((3, 9, 7, 17), 17, 1, 2, "VALID"),
        ((2, 40, 37, 20), 4, 4, 2, ((1, 1), (2, 0))),  # few output channels
        ((2, 40, 37, 20), 4, 3, 1, "SAME"),
        ((2, 40, 37, 4), 20, 3, 1, "SAME"),  # few input channels
        ((2, 18, 18, 17), 17, 9, 9, "VALID"),  # patches
    ],
)
def test_kernel_gradients_in_tiles_are_laxs(shape, features, side, stride, padding):
    x, kernel, dkernel = arrays(shape, *[(side, side, shape[-1], features)] * 2)

    def compute(convolution):
        @jax.jit
        def derivatives(x, kernel):
            y, dy = jax.jvp(lambda kernel: convolution(x, kernel, (stride, stride), padding), (kernel,), (dkernel,))
            pull = jax.vjp(lambda kernel: convolution(x, kernel, (stride, stride), padding), kernel)[1]
            return dy, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

        return derivatives(x, kernel)

    for actual, expected in zip(compute(convolve), compute(LAX), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_derivatives_of_tiles_of_second_order_and_over_a_batch():
    x, kernel, tangent = arrays((2, 48, 33, 17), (3, 3, 17, 17), (3, 3, 17, 17))

    def compute(convolution):
        @jax.jit
        def derivatives(x, kernel):
            def value(x, kernel):
                return jnp.sum(jnp.sin(convolution(x, kernel, (1, 1), "SAME")))

            penalty = jax.grad(lambda kernel: jnp.sum(jax.grad(value)(x, kernel) ** 2))(kernel)
            forward_over_reverse = jax.jvp(lambda kernel: jax.grad(value, 1)(x, kernel), (kernel,), (tangent,))[1]
            per_example = jax.vmap(jax.grad(value, 1), (0, None))(x[:, None], kernel)
            return penalty, forward_over_reverse, per_example

        return derivatives(x, kernel)

    for actual, expected in zip(compute(convolve), compute(LAX), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_kernel_gradients_in_tiles_of_bfloat16_are_summed_in_float32():
    x, kernel = arrays((2, 40, 40, 17), (3, 3, 17, 18))
    cotangent = jnp.cos(jnp.arange(57_600)).reshape(2, 40, 40, 18).astype(jnp.bfloat16)

    def gradient(convolution, x, cotangent):
        pull = jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1]
        return jax.jit(pull)(cotangent)[0]

    rounded = x.astype(jnp.bfloat16)
    actual = gradient(lambda x, kernel: convolve(x, kernel, (1, 1), "SAME"), rounded, cotangent)
    in_float32 = (array.astype(jnp.float32) for array in (rounded, cotangent))
    expected = gradient(lambda x, kernel: LAX(x, kernel, (1, 1), "SAME"), *in_float32)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("shape, features, tile", [((2, 64, 64, 20), 18, "1x32x32"), ((4, 16, 16, 20), 18, "4x16x16")])
def test_kernel_gradients_are_products_on_tiles(shape, features, tile):
    """The summed axis of each product is a tile, and no convolution has the window of a map."""
    x, kernel = arrays(shape, (3, 3, shape[-1], features))

    def value(kernel):
        return jnp.sum(convolve(x, kernel, (1, 1), "SAME") ** 2)

    text = jax.jit(jax.grad(value)).trace(kernel).lower(lowering_platforms=("cpu",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 9 and all(f"tensor<{tile}x{features}xf32>" in line for line in products)
    assert text.count("stablehlo.convolution") == 1  # the forward pass
    with jax.set_mesh(jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))):  # whose tiles would be sent around
        assert "dot_general" not in jax.jit(jax.grad(value)).lower(kernel).as_text()


def lowered(function, platform: str) -> list[str]:
    """Convolutions and number of kernel transposes of a gradient's program, as lowered for a platform."""
    x, kernel = arrays((2, 8, 8, 3), (3, 3, 3, 5))

    def loss(x, kernel):
        return jnp.sum(function(x, kernel, (1, 1), "SAME") ** 2)

    text = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    numbers = [line.split("dim_numbers = ")[1].split(", window")[0] for line in text.splitlines() if "convolution" in line]
    return [*sorted(numbers), str(text.count("stablehlo.transpose"))]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_only_a_cpu_gets_another_gradient(platform):
    assert (lowered(convolve, platform) == lowered(LAX, platform)) == (platform != "cpu")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_patches_are_multiplied_in_all_passes(dtype):
    x, kernel = arrays((2, 8, 12, 3), (4, 4, 3, 5))
    x = x.astype(dtype)

    def compute(convolution, x, kernel):
        y, pull = jax.vjp(lambda x, kernel: convolution(x, kernel, (4, 4), "VALID"), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(dtype).astype(y.dtype))

    actual = jax.jit(functools.partial(compute, convolve))
    assert "convolution" not in actual.lower(x, kernel).as_text()
    expected = compute(LAX, x.astype(jnp.float32), kernel.astype(dtype).astype(jnp.float32))
    for y, z, like in zip(actual(x, kernel), expected, (x, x, kernel), strict=True):
        assert y.dtype == like.dtype
        rounding = 0 if y.dtype == jnp.float32 else 2**-8
        np.testing.assert_allclose(y.astype(jnp.float32), z, atol=1e-5, rtol=rounding)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_is_laxs_in_both_forms(stride, monkeypatch):
    """Value and gradients, as a CPU and as other devices compute them."""
    x, kernel = arrays((2, 9, 8, 3), (5, 5, 1, 3))
    variables = {"params": {"kernel": kernel, "bias": jnp.arange(3.0)}}

    def compute(function):
        y, pull = jax.vjp(function, x, variables)
        return jax.tree.leaves((y, pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))))

    def lax_convolution(x, variables):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 3}
        kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
        return lax.conv_general_dilated(x, kernel, (stride, stride), ((2, 2), (2, 2)), **options) + bias[None, None, None]

    expected = compute(lax_convolution)
    module = DepthwiseConv(5, jnp.float32, stride)
    for device in ("cpu", "tpu"):
        monkeypatch.setattr(convolution, "platform", lambda device=device: device)
        for y, z in zip(compute(lambda x, variables: module.apply(variables, x)), expected, strict=True):
            np.testing.assert_allclose(y, z, atol=2e-5)


def test_in_a_loop_the_kernel_keeps_its_order():
    x, kernel = arrays((1, 8, 8, 4), (3, 3, 4, 4))

    def slope(x):
        return jax.grad(lambda x: (convolve(x, kernel, (1, 1), "SAME") ** 2).sum())(x)

    looped = jax.jit(lambda x: lax.scan(lambda x, _: (x - 0.1 * slope(x), None), x, length=3)[0])
    assert "01oi" not in looped.lower(x).compile().as_text()
