"""Unified functions, against the functions themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.sweep.unify import Mismatch, unify

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def polynomial(a, b):
    return lambda x: a * x**2 + b


def loop(rate, steps):
    def body(carry, t):
        return carry * rate + t, jnp.sum(carry) / rate

    def power(x):
        return jax.lax.while_loop(lambda c: c[0] < steps, lambda c: (c[0] + 1, c[1] * rate), (0, jnp.float32(1)))[1]

    return lambda x: jax.lax.scan(body, x, jnp.arange(4.0))[0] + power(x)


def branches(a, b):
    return lambda x: jax.lax.cond(jnp.sum(x) > a, lambda x: a * x, lambda x: x - b, x)


def nested(a, seed):
    inner = jax.jit(lambda x: jax.random.normal(jax.random.key(seed), x.shape) * a)
    return lambda x: inner(x) + jax.nn.relu(a * x)


def trained(rate, scale):
    def loss(w):
        h = jax.checkpoint(lambda w: jnp.tanh(scale * X @ w.T), policy=jax.checkpoint_policies.nothing_saveable)(w)
        return jnp.mean(jax.nn.logsumexp(h, axis=-1) ** 2)

    return lambda w: w - rate * jax.grad(loss)(w)


def solve(a):
    return lambda x: jax.scipy.sparse.linalg.cg(lambda v: v * a, x)[0]


def constant(table, offset):
    table = np.asarray(table, np.float32)[None]
    return lambda x: x * table + offset


@pytest.mark.parametrize(
    ("make", "points"),
    [
        (polynomial, [(1.0, 2.0), (3.0, 2.0), (0.5, -1.0)]),
        (loop, [(0.9, 3), (0.5, 3), (0.9, 7)]),
        (branches, [(0.5, 1.0), (-2.0, 3.0)]),
        (nested, [(1.5, 0), (1.5, 1), (-1.0, 2)]),
        (trained, [(0.1, 1.0), (0.3, 1.0), (0.1, 2.0)]),
        (constant, [([1, 2, 3, 4], 0.0), ([4, 3, 2, 1], 1.0)]),
    ],
)
def test_unified_functions_equal_the_functions(make, points):
    functions = [make(*point) for point in points]
    unified, numbers = unify([jax.make_jaxpr(function)(X) for function in functions])
    results = jax.jit(jax.vmap(unified, in_axes=(0, None)))(numbers, [jnp.asarray(X)])[0]
    expected = np.stack([jax.jit(function)(X) for function in functions])
    np.testing.assert_allclose(results, expected, rtol=1e-6, atol=1e-6)


def test_only_numbers_that_differ_are_inputs():
    traces = [jax.make_jaxpr(polynomial(2.0, b))(X) for b in (1.0, 5.0)]
    _, numbers = unify(traces)
    assert [number.tolist() for number in numbers] == [[1.0, 5.0]]
    assert unify([traces[0], traces[0]])[1] == []


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (lambda x: x + 1.0, lambda x: x * 1.0, "operations differ: add, mul"),
        (lambda x: x + 1.0, lambda x: (x + 1.0) * 2, "numbers of operations differ"),
        (lambda x: jnp.sum(x, 0), lambda x: jnp.sum(x, 1), "differs in axes"),
        (lambda x: x - jnp.sin(x), lambda x: jnp.sin(x) - x, "operands differ"),
        (lambda x: x * np.float32(2), lambda x: x.astype(jnp.bfloat16) * 2, "differ"),
        (lambda x: x**2, lambda x: x**3, "differs in y"),
        (solve(2.0), solve(3.0), "numbers inside of custom_linear_solve differ"),
    ],
)
def test_other_differences_are_refused(a, b, message):
    with pytest.raises(Mismatch, match=message):
        unify([jax.make_jaxpr(a)(X), jax.make_jaxpr(b)(X)])


def test_residuals_of_unified_functions_are_still_recomputed():
    unified, numbers = unify([jax.make_jaxpr(trained(0.1, scale))(X) for scale in (1.0, 2.0)])
    program = jax.jit(jax.vmap(unified, in_axes=(0, None))).lower(numbers, [jnp.asarray(X)])
    assert "optimization_barrier" in program.as_text()


def test_shardings_of_one_device_are_left_out():
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    spec = jax.sharding.PartitionSpec("data")
    with jax.set_mesh(mesh):
        traces = [jax.make_jaxpr(lambda x, a=a: a * jax.sharding.reshard(x, spec))(X) for a in (2.0, 3.0)]
    assert "reshard" in {equation.primitive.name for equation in traces[0].eqns}
    function, numbers = unify(traces)
    (results,) = jax.vmap(function, in_axes=(0, None))(numbers, [X])
    np.testing.assert_array_equal(results, [2 * X, 3 * X])


def test_functions_of_one_device_are_unified_over_several():
    """A branch returns a literal, which remembers the mesh of its trace: another than that of the unified function."""

    def make(a):
        return lambda x: jax.lax.cond(jnp.sum(x) > 0, lambda x: a * jnp.sum(x), lambda x: jnp.zeros(()), x)

    P, auto = jax.sharding.PartitionSpec, (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), auto, devices=jax.devices()[:1])):
        traces = [jax.make_jaxpr(make(a))(X) for a in (2.0, 3.0)]
    function, numbers = unify(traces)
    inputs = jnp.stack([X + 1, X - 1])  # the sum is positive, and negative
    mesh = jax.make_mesh((2,), ("runs",), auto, devices=jax.devices()[:2])
    specs = {"in_specs": P("runs"), "out_specs": P("runs"), "check_vma": False}  # as in `together`
    over_runs = jax.shard_map(jax.vmap(lambda numbers, x: function(numbers, [x])), mesh=mesh, **specs)
    (results,) = jax.jit(over_runs)(numbers, inputs)
    np.testing.assert_allclose(results, [2 * np.sum(X + 1), 0], rtol=1e-6)
