"""The transformer against a twin written with loops in NumPy, and against itself where two ways must agree."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax import attention, transformer
from nn_jax.transformer import Transformer

WIDTH, DEPTH, HEADS, LENGTH = 8, 3, 2, 5


def make(**options):
    return Transformer(**{"width": WIDTH, "depth": DEPTH, "heads": HEADS, "scan": False} | options)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH)), jnp.float32)


@pytest.fixture(scope="module")
def params(x):
    """Unrolled parameters, biases and scales too drawn at random: zeros and ones would hide mistakes."""
    made = nn.unbox(jax.jit(make().init)(jax.random.key(0), x))["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.asarray(p) + 0.1 * draw.standard_normal(p.shape).astype(np.float32), made)


def apply(module, variables, *args):
    return jax.jit(lambda variables: module.apply(variables, *args))(variables)


def stacked(params):
    blocks = [params[f"block_{number}"] for number in range(DEPTH)]
    return {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


# The twin: float64, one query at a time.


def twin_norm(x, p, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def twin_attention(x, p, causal, visible=None, eps=1e-5):
    if "qv_bias" in p:
        q_bias, v_bias = p["qv_bias"]
        p = p | {"qkv": p["qkv"] | {"bias": np.stack([q_bias, np.zeros_like(q_bias), v_bias])}}
    heads = np.zeros((*x.shape[:2], HEADS, WIDTH // HEADS))
    for row in range(x.shape[0]):
        for head in range(HEADS):
            kernel, bias = p["qkv"]["kernel"], p["qkv"].get("bias", np.zeros((3, HEADS, 1)))
            q, k, v = (x[row] @ kernel[:, part, head] + bias[part, head] for part in range(3))
            if "q_norm" in p:
                q, k = twin_norm(q, p["q_norm"], eps), twin_norm(k, p["k_norm"], eps)
            for place in range(x.shape[1]):
                seen = np.arange(place + 1 if causal else x.shape[1])
                seen = seen if visible is None else seen[visible[row, seen]]
                scores = k[seen] @ q[place] / math.sqrt(WIDTH // HEADS)
                weights = np.exp(scores) / np.exp(scores).sum()
                heads[row, place, head] = weights @ v[seen]
    if "norm" in p:
        heads = twin_norm(heads.reshape(x.shape), p["norm"], eps).reshape(heads.shape)
    return np.einsum("btnh,nhw->btw", heads, p["out"]["kernel"]) + p["out"].get("bias", 0)


def twin_dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def twin_mlp(x, p, activation, inner=lambda y: y):
    hidden = np.vectorize(activation)(twin_dense(x, p["mlp_gate" if "mlp_gate" in p else "mlp_in"]))
    if "mlp_gate" in p:
        hidden = hidden * twin_dense(x, p["mlp_in"])
    return twin_dense(inner(hidden), p["mlp_out"])


def gelu(v):
    return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))


def twin(x, params, *, causal=False, visible=None, eps=1e-5, activation=gelu):
    x, params = jax.tree.map(lambda a: np.asarray(a, np.float64), (x, params))
    for number in range(DEPTH):
        p = params[f"block_{number}"]
        x = x + twin_attention(twin_norm(x, p["norm1"], eps), p["attention"], causal, visible, eps)
        x = x + twin_mlp(twin_norm(x, p["norm2"], eps), p, activation)
    return x


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_equal_their_twin(x, params, causal):
    actual = apply(make(causal=causal), {"params": params}, x)
    np.testing.assert_allclose(actual, twin(x, params, causal=causal), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("options", [{"key_bias": False}, {"qk_norm": True}], ids=lambda x: next(iter(x)))
def test_keys_without_bias_and_normalised_ones_equal_their_twin(x, scan, options):
    module, draw = make(scan=scan, **options), np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(make(**options).init, jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda p: 0.4 * draw.standard_normal(p.shape).astype(np.float32), shapes)
    actual = apply(module, {"params": stacked(params) if scan else params}, x)
    np.testing.assert_allclose(actual, twin(x, params), atol=1e-5)


@pytest.mark.parametrize("branch_norms", transformer.BRANCH_NORMS)
def test_gates_and_norms_of_branches_equal_their_twin(x, branch_norms):
    module = make(causal=True, branch_norms=branch_norms, gated=True, activation="silu")
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.3 * draw.standard_normal(p.shape).astype(np.float32), shapes)
    y = np.asarray(x, np.float64)
    for number in range(DEPTH):
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), params[f"block_{number}"])

        def norm(name, is_used, p=p):
            return (lambda z: twin_norm(z, p[name], 1e-5)) if is_used else (lambda z: z)

        attention_norm = norm("attention_norm", branch_norms in ("sandwich", "normformer"))
        mlp_norm = norm("mlp_norm", branch_norms in ("sandwich", "normformer", "inner", "double"))
        # Norms at the inputs of branches, at their outputs, or after the sum.
        place = {"output": 1, "post": 2}.get(branch_norms, 0)
        first, second = ([norm(name, i == place) for i in range(3)] for name in ("norm1", "norm2"))
        y = first[2](y + first[1](attention_norm(twin_attention(first[0](y), p["attention"], True))))
        is_inner = branch_norms in ("normformer", "inner")
        inner, outer = (mlp_norm, norm("", False)) if is_inner else (norm("", False), mlp_norm)
        before, outer = (outer, norm("", False)) if branch_norms == "double" else (norm("", False), outer)
        branch = outer(twin_mlp(before(second[0](y)), p, lambda v: v / (1 + math.exp(-v)), inner))
        y = second[2](y + second[1](branch))
    np.testing.assert_allclose(apply(module, {"params": params}, x), y, atol=1e-5)


@pytest.mark.parametrize("scan, remat", [(False, "none"), (True, "dots")])
def test_cross_attention_equals_its_twin(x, scan, remat):
    """Branches that do not cross-attend are silenced: only the second block's cross-attention adds to x."""
    module = make(cross=True, bias=False)
    draw = np.random.default_rng(2)
    tokens, mask = draw.standard_normal((2, 4, WIDTH)), np.array([[True, True, False, True], [True] * 4])
    context = attention.Context(jnp.asarray(tokens, jnp.float32), jnp.asarray(mask))
    program = jax.eval_shape(lambda key: module.init(key, x, context=context), jax.random.key(0))
    params = jax.tree.map(lambda p: 0.5 * draw.standard_normal(p.shape).astype(np.float32), nn.unbox(program)["params"])
    for number in range(DEPTH):
        for name in ("attention", "cross_attention")[: 1 + (number != 1)]:
            params[f"block_{number}"][name]["out"]["kernel"] *= 0
        params[f"block_{number}"]["mlp_out"]["kernel"] *= 0
    p, y = params["block_1"]["cross_attention"], np.asarray(x, np.float64)
    normed = twin_norm(y, params["block_1"]["cross_norm"], 1e-5)
    for row in range(2):
        for head in range(HEADS):
            q, k, v = (z @ p[n]["kernel"][:, head] for n, z in (("q", normed[row]), ("k", tokens[row]), ("v", tokens[row])))
            scores = np.where(mask[row], q @ k.T / math.sqrt(WIDTH // HEADS), -np.inf)
            weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            y[row] += weights @ v @ p["out"]["kernel"][head]
    module = make(cross=True, bias=False, scan=scan, remat=remat)
    variables = {"params": stacked(params) if scan else params}
    actual = jax.jit(lambda v: module.apply(v, x, context=context))(variables)
    np.testing.assert_allclose(actual, y, atol=1e-5)


def test_tokens_are_rows_for_a_cpu_alone(x, params, monkeypatch):
    device = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)

    def traced():
        program = jax.make_jaxpr(lambda p, x: make(causal=True).apply({"params": p}, x))(params, x)
        products = [eqn for eqn in program.eqns if eqn.primitive.name in ("dot_general", "mixed_dot_general")]
        return {eqn.invars[0].aval.ndim for eqn in products if eqn.invars[1].aval.shape[0] in (WIDTH, 4 * WIDTH)}

    assert traced() == {2} and _under(mesh, traced) == {3}
    monkeypatch.setattr(transformer, "platform", lambda: "tpu")
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    actual = make(causal=True).apply({"params": params}, x)
    np.testing.assert_allclose(actual, twin(x, params, causal=True), atol=1e-5)


def _under(mesh, function):
    with jax.sharding.use_abstract_mesh(mesh):
        return function()


def test_activation_reaches_the_mlp(x, params):
    actual = apply(make(activation="quick_gelu"), {"params": params}, x)
    np.testing.assert_allclose(actual, twin(x, params, activation=lambda v: v / (1 + math.exp(-1.702 * v))), atol=1e-5)


def test_eps_reaches_every_norm(x, params):
    small = 1e-2 * x
    actual = apply(make(eps=1e-2), {"params": params}, small)
    np.testing.assert_allclose(actual, twin(small, params, eps=1e-2), atol=1e-5)
    assert np.abs(actual - twin(small, params)).max() > 0.1, "this input would not show a forgotten eps"


def test_causal_mask_hides_the_future(x, params):
    changed = x.at[:, 3:].add(1)
    before, after = (apply(make(causal=True), {"params": params}, v) for v in (x, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("scan, remat", [(False, "none"), (True, "none"), (True, "dots"), (False, "full")])
def test_a_mask_hides_tokens_beside_the_causal_mask(x, params, scan, remat):
    visible = np.array([[True, False, True, True, False], [True, True, False, True, True]])
    model_params = {"params": stacked(params) if scan else params}
    module = make(causal=True, scan=scan, remat=remat)
    run = jax.jit(lambda mask: module.apply(model_params, x, mask=mask))
    expected = twin(x, params, causal=True, visible=visible)
    np.testing.assert_allclose(run(visible[:, None, None]), expected, atol=1e-5)


def test_a_mask_beside_other_attentions_is_refused(x, params):
    with pytest.raises(ValueError, match="a mask restricts attention to all tokens"):
        make().apply({"params": params}, x, (attention.attend,), mask=jnp.ones((2, 1, 1, LENGTH), bool))


def gradients(module, params, x, **kwargs):
    def loss(params, x):
        y = module.apply({"params": params}, x, **kwargs)
        return jnp.sum(jnp.sin(y))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)


@pytest.fixture(scope="module")
def unrolled(x, params):
    """Value and gradients with unrolled blocks without rematerialisation."""
    return gradients(make(causal=True), params, x)


@pytest.mark.parametrize("scan, remat", [(False, "full"), (False, "dots"), (True, "none"), (True, "full"), (True, "dots")])
def test_scanned_equals_unrolled_whatever_is_recomputed(x, params, unrolled, scan, remat):
    value, (grads, input_grad) = unrolled
    model_params, expected = (stacked(params), stacked(grads)) if scan else (params, grads)
    actual, (actual_grads, actual_input_grad) = gradients(make(causal=True, scan=scan, remat=remat), model_params, x)
    np.testing.assert_allclose(actual, value, rtol=1e-5)
    np.testing.assert_allclose(actual_input_grad, input_grad, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual_grads, expected)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_unrolled_blocks_choose_their_attention_when_they_are_traced(x, params, remat):
    functions = (attention.attend, lambda q, k, v: v)
    module = make(scan=False, remat=remat, attention_index=(0, 1, 1))

    def loss(params):
        return jnp.sum(module.apply({"params": params}, x, functions))

    assert " cond[" not in str(jax.make_jaxpr(jax.grad(loss))(params))


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scan", [False, True])
def test_remat_saves_of_each_block_what_it_says(params, scan, dtype, monkeypatch):
    """Saved activations per block, beside the parameters, in units of the stream [batch, length, width]."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, LENGTH, WIDTH)), dtype)
    model_params = stacked(params) if scan else params

    def saved_per_block(remat):
        module = make(remat=remat, scan=scan, dtype=dtype)
        _, back = jax.eval_shape(lambda p: jax.vjp(lambda q: module.apply({"params": q}, x), p), model_params)
        return (size(back) - size(model_params)) / (DEPTH * x.nbytes)

    assert saved_per_block("full") == pytest.approx(1, abs=0.05), "the block's input"
    assert saved_per_block("dots") == pytest.approx(9, abs=0.05), "and q, k, v, the attention output, the MLP (4)"
    assert saved_per_block("none") > 25
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    log_sum_exps = HEADS * 4 / (WIDTH * jnp.dtype(dtype).itemsize)
    assert saved_per_block("dots") == pytest.approx(10 + log_sum_exps, abs=0.05), "and the sum of values"


def test_scanned_layers_have_different_initial_weights(x):
    kernel = nn.unbox(jax.jit(make(scan=True).init)(jax.random.key(0), x))["params"]["blocks"]["mlp_in"]["kernel"]
    assert kernel.shape[0] == DEPTH
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_acts_in_training_only_and_differs_by_layer(x, params, scan):
    module = make(dropout=0.5, scan=scan)
    model_params = {"params": stacked(params) if scan else params}
    without = apply(module, model_params, x)
    np.testing.assert_allclose(without, twin(x, params), atol=1e-5)
    dropped = jax.jit(lambda seed: module.apply(model_params, x, (), False, rngs={"dropout": jax.random.key(seed)}))
    draws = [dropped(seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])
    assert not np.allclose(draws[0], without)


def test_bfloat16_keeps_float32_parameters(x, params):
    module = make(dtype=jnp.bfloat16)
    made = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {np.dtype("float32")}
    actual = apply(module, {"params": params}, x.astype(jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    exact = twin(x, params)
    assert np.abs(np.asarray(actual, np.float64) - exact).max() < 0.05 * np.abs(exact).max()


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "names"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_names_its_axes(x, scan):
    actual = names(jax.eval_shape(make(scan=scan).init, jax.random.key(0), x)["params"])
    for path, leaf in actual.items():
        assert len(leaf.names) == len(leaf.value.shape), path
        assert (leaf.names[0] == "layers") == scan, path
    prefix, lead = ("blocks", ("layers",)) if scan else ("block_0", ())
    assert actual[f"{prefix}/attention/out/kernel"].names == (*lead, "heads", "head_dim", "embed")
    assert actual[f"{prefix}/mlp_in/kernel"].names == (*lead, "embed", "mlp")
