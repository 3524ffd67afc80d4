"""bfloat16 products with float32 parameters: gradients against float64 sums, and the same on one device as on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nn_jax import layers
from nn_jax.convolution import Conv, convolve
from nn_jax.layers import add_parameter
from nn_jax.mixed_precision import dot, mixed_dot_general, round_weights

OPTIONS = {"axes": ("channels_in", "embed"), "std": 1.0}


def at_least_float32(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def applied(module, x, kernel):
    """A layer whose bias is drawn, too, of numbers that bfloat16 holds."""
    bias = jnp.arange(kernel.shape[-1], dtype=kernel.dtype)
    return module.apply({"params": {"kernel": kernel, "bias": bias}}, x)


RNG = np.random.default_rng(4)
OPERATIONS = {  # fmt: skip
    "product": (lambda x, kernel: dot(x, kernel, 1), (64, 24), (24, 8)),
    "product of float32 logits": (lambda x, kernel: dot(x, kernel, 1, at_least_float32(x)), (64, 24), (24, 8)),
    "product over two axes": (lambda x, kernel: dot(x, kernel, 2), (64, 6, 4), (6, 4, 8)),
    "convolution": (lambda x, kernel: convolve(x, kernel, (1, 1), "SAME"), (64, 5, 6, 3), (3, 3, 3, 4)),
    "convolution of float32 logits": (
        lambda x, kernel: convolve(x, kernel, (1, 1), "VALID", at_least_float32(x)), (64, 5, 6, 3), (3, 3, 3, 4),
    ),
    "strided convolution": (lambda x, kernel: convolve(x, kernel, (2, 2), "VALID"), (64, 6, 6, 3), (2, 2, 3, 4)),
    "bias": (add_parameter, (64, 3, 5), (5,)),
    "dense": (lambda x, kernel: applied(layers.Dense((8,), ("embed", "mlp"), 1.0, x.dtype), x, kernel), (64, 24), (24, 8)),
    "patches": (
        lambda x, kernel: applied(Conv(4, 2, x.dtype, stride=2, **OPTIONS), x, kernel), (64, 6, 6, 3), (2, 2, 3, 4),
    ),
}  # operation, shapes of input and parameter


def short(x):
    """Rounded to bfloat16, in float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.fixture(params=OPERATIONS)
def case(request):
    function, shape, parameter = OPERATIONS[request.param]
    x, w = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in (shape, parameter))
    g = jnp.asarray(RNG.standard_normal(jax.eval_shape(function, x, w).shape), jnp.bfloat16)
    return function, x.astype(jnp.bfloat16), w, g


def pull(function, x, w, g):
    y, backward = jax.vjp(function, x, w)
    return (y, *backward(g.astype(y.dtype)))


def test_the_gradient_of_a_parameter_is_a_float32_sum(case):
    function, x, w, g = case
    y, to_x, to_w = pull(function, x, w, g)
    assert to_w.dtype == jnp.float32 and to_x.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        inputs = [jnp.asarray(short(a)) for a in (x, w, g)]
        if function is add_parameter:
            inputs[1] = jnp.asarray(np.asarray(w, np.float64))  # a term is added as it is
        expected, expected_to_x, expected_to_w = map(np.asarray, pull(function, *inputs))
    np.testing.assert_allclose(to_w, expected_to_w, rtol=1e-5, atol=1e-5)  # a bfloat16 sum is off by 1e-2
    scale = np.abs(expected_to_x).max()
    np.testing.assert_allclose(np.asarray(to_x, np.float64), expected_to_x, atol=2**-7 * scale)
    rounding = 1e-5 if y.dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=rounding * np.abs(expected).max())


def test_eight_devices_sum_gradients_as_one_does(case):
    function, x, w, g = case
    *_, alone = pull(function, x, w, g)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, g = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, g))
    compiled = jax.jit(functools.partial(pull, function), out_shardings=NamedSharding(mesh, P()))
    *_, together = compiled(x, jax.device_put(w, NamedSharding(mesh, P())), g)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-4)  # of sums of up to 2,000 terms of size 1


def test_derivatives_in_both_directions_agree(case):
    function, x, w, g = case
    dx, dw = (jnp.asarray(RNG.standard_normal(a.shape), a.dtype) for a in (x, w))
    y, dy = jax.jvp(function, (x, w), (dx, dw))
    _, to_x, to_w = pull(function, x, w, g)
    assert dy.dtype == y.dtype
    forward = np.vdot(np.asarray(g, np.float64), np.asarray(dy, np.float64))
    backward = np.vdot(short(to_x), short(dx)) + np.vdot(np.asarray(to_w, np.float64), np.asarray(dw, np.float64))
    size = np.linalg.norm(np.asarray(g, np.float64)) * np.linalg.norm(np.asarray(dy, np.float64))
    assert abs(forward - backward) < 2**-7 * size
    jax.vmap(jax.grad(lambda w, x: function(x, w).astype(jnp.float32).sum()), (None, 0))(w, x[:, None])


def test_the_backward_pass_keeps_inputs_in_bfloat16(case):
    function, x, w, _ = case
    _, backward = jax.vjp(function, x, w)
    kept = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert (x.shape, "float32") not in kept and len(kept) <= 1


# Shapes, contracted axes, batch axes: with axes in any order, as `lax.dot_general` has them.
PRODUCTS = {
    "matrices": ((4, 3), (3, 5), ((1,), (0,)), ((), ())),
    "two contracted axes in another order": ((4, 2, 3), (3, 5, 2), ((1, 2), (2, 0)), ((), ())),
    "one batch axis": ((2, 4, 3), (5, 2, 3), ((2,), (2,)), ((0,), (1,))),
    "two batch axes in another order": ((3, 4, 2, 6), (2, 6, 5, 3), ((3,), (1,)), ((2, 0), (0, 3))),
}


@pytest.mark.parametrize("shape, other, contracted, batch", PRODUCTS.values(), ids=PRODUCTS)
def test_in_float32_a_mixed_product_is_that_of_lax(shape, other, contracted, batch):
    """Value, derivatives of first and second order in both modes, and batches over each axis of each operand."""
    a, b = (jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in (shape, other))

    def lax_product(a, b):
        return jax.lax.dot_general(a, b, (contracted, batch))

    def product(a, b):
        return mixed_dot_general(a, b, (contracted, batch), jnp.float32, jnp.float32)

    def results(product):
        def loss(a, b):
            return jnp.sum(jnp.sin(product(a, b)))

        yield product(a, b)
        yield from jax.grad(loss, (0, 1))(a, b)
        yield jax.hessian(loss, (0, 1))(a, b)
        for axis in range(a.ndim + 1):
            yield jax.vmap(product, (axis, None), axis % 2)(jnp.stack([a, 2 * a, 3 * a], axis), b)
        for axis in range(b.ndim + 1):
            yield jax.vmap(product, (None, axis), axis % 2)(a, jnp.stack([b, 2 * b, 3 * b], axis))
            yield jax.vmap(product, (0, axis))(jnp.stack([a, 2 * a]), jnp.stack([b, 3 * b], axis))
        yield jax.vmap(jax.vmap(product, (0, None)), (None, 0))(jnp.stack([a, 2 * a]), jnp.stack([b, 3 * b, b]))

    for actual, expected in zip(results(product), results(lax_product), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)


def test_kernels_alone_are_rounded_before_they_are_used():
    params = {"norm": {"scale": jnp.ones(3)}, "dense": {"kernel": jnp.full((3, 2), 1 / 3), "bias": jnp.full(2, 1 / 3)}}
    rounded = round_weights(params, jnp.bfloat16)
    dtypes = jax.tree.map(lambda x: x.dtype.name, rounded)
    assert dtypes == {"norm": {"scale": "float32"}, "dense": {"kernel": "bfloat16", "bias": "float32"}}
    x = jnp.asarray(RNG.standard_normal((4, 3)), jnp.bfloat16)
    np.testing.assert_array_equal(*(dot(x, p["dense"]["kernel"], 1) for p in (params, rounded)))
