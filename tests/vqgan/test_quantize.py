"""Each quantiser against NumPy written from the paper's equations."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train_jax import sharding
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from vqgan_jax import codebook, model, quantize
from vqgan_jax.quantize import QuantizerOptions

rng = np.random.default_rng(0)
Z = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)


def apply(module, variables, x, *inputs, **options):
    """`module.apply`, compiled: in one piece it is faster than operation by operation."""
    return jax.jit(lambda variables, x: module.apply(variables, x, *inputs, **options))(variables, x)


def make(z=Z, **options):
    """A quantiser and its variables."""
    module = quantize.build(QuantizerOptions.parse(options, "model.quantizer"))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return module, nn.unbox(jax.jit(lambda z: module.init(keys, z, True, 1.0))(z[..., : module.inputs]))


def nearest(z, points):
    distances = ((z[..., None, :].astype(np.float64) - points) ** 2).sum(-1)
    return distances.argmin(-1)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_codes_are_the_nearest_and_beta_weighs_the_paper_s_term(unit, legacy):
    module, variables = make(type="nearest", size=16, dim=6, unit=unit, legacy=legacy, beta=0.25)
    book = np.asarray(rng.standard_normal((16, 6)), np.float32)
    variables = {"params": {"codebook": book}}

    def loss(book, z):
        return apply(module, {"params": {"codebook": book}}, z, True, 1.0).loss

    quantized = apply(module, variables, Z, True, 1.0)
    norm = (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)) if unit else (lambda x: x)
    z, points = norm(Z), norm(book)
    codes = nearest(z, points)
    np.testing.assert_array_equal(quantized.codes, codes)
    np.testing.assert_allclose(quantized.vectors, points[codes], atol=1e-6)
    np.testing.assert_allclose(
        apply(module, variables, codes.astype(np.int32), method="embed"), points[codes], atol=1e-6
    )
    gap = np.mean((z - points[codes]) ** 2)
    np.testing.assert_allclose(quantized.loss, 1.25 * gap, rtol=1e-5)
    if not unit:  # the two halves of the loss have the same value: only gradients tell them apart
        to_book, to_z = jax.grad(loss, (0, 1))(jnp.asarray(book), jnp.asarray(Z))
        gradient = 2 * (z - points[codes]) / z.size
        weights = (0.25, 1.0) if legacy else (1.0, 0.25)
        expected = np.zeros_like(book)
        np.add.at(expected, codes, -gradient)
        np.testing.assert_allclose(to_book, weights[0] * expected, atol=1e-6)
        np.testing.assert_allclose(to_z, weights[1] * gradient, atol=1e-6)


@pytest.mark.parametrize("options", [
    {"type": "nearest", "size": 16, "dim": 6}, {"type": "ema", "size": 16, "dim": 6}, {"type": "lfq", "bits": 6},
])  # fmt: skip
def test_gradients_pass_straight_through(options):
    module, variables = make(**options)
    weights = rng.standard_normal(Z.shape).astype(np.float32)
    gradient = jax.grad(lambda z: jnp.sum(weights * apply(module, variables, z, False, 1.0).vectors))(jnp.asarray(Z))
    np.testing.assert_allclose(gradient, weights, atol=1e-6)


def test_ema_codes_are_moving_means():
    module, variables = make(type="ema", size=5, dim=6, decay=0.9)
    book = variables["codebook"]
    state = {k: np.asarray(v, np.float64) for k, v in book.items()}
    for _ in range(3):
        quantized = apply(module, {"codebook": book}, Z, True, 1.0)
        book = codebook.update_moving_means(book, quantized.codes, quantized.latents, 0.9)
        codes = nearest(Z, state["points"]).ravel()
        used = np.bincount(codes, minlength=5)
        summed = np.stack([Z.reshape(-1, 6)[codes == k].sum(0) for k in range(5)])
        state["count"] = 0.9 * state["count"] + 0.1 * used
        state["total"] = 0.9 * state["total"] + 0.1 * summed
        n = state["count"].sum()
        state["points"] = state["total"] / ((state["count"] + 1e-5) * n / (n + 5e-5))[:, None]
        for name, value in state.items():
            np.testing.assert_allclose(book[name], value, rtol=1e-4, atol=1e-5)


def test_gumbel_samples_codes_by_the_softmax_of_its_logits():
    module, variables = make(type="gumbel", size=4, dim=6, kl_weight=0.5)
    z = np.repeat(Z[:1, :1, :1], 4000, axis=0)
    p = jax.tree.map(np.asarray, variables["params"])
    logits = z[0, 0, 0] @ p["proj"]["kernel"] + p["proj"]["bias"]
    expected = np.exp(logits) / np.exp(logits).sum()
    sampled = apply(module, variables, z, True, 0.5, rngs={"dropout": jax.random.key(1)})
    shares = np.bincount(np.asarray(sampled.codes).ravel(), minlength=4) / 4000
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / 4000))
    np.testing.assert_allclose(sampled.loss, 0.5 * np.sum(expected * np.log(4 * expected)), rtol=1e-4)
    np.testing.assert_allclose(sampled.vectors[:, 0, 0], p["codebook"][np.asarray(sampled.codes).ravel()], atol=1e-5)
    without_noise = apply(module, variables, Z, False, 1.0)
    np.testing.assert_array_equal(without_noise.codes, np.argmax(Z @ p["proj"]["kernel"] + p["proj"]["bias"], -1))


@pytest.mark.parametrize("levels", [(3, 5), (8, 5, 5), (4, 4, 2)])
def test_fsq_codes_are_all_combinations_of_levels(levels):
    module, _ = make(np.zeros((1, 1, 1, 8), np.float32), type="fsq", levels=levels)
    size = int(np.prod(levels))
    vectors = np.asarray(apply(module, {}, np.arange(size, dtype=np.int32).reshape(1, 1, -1), method="embed"))[0, 0]
    # Levels lie evenly between -1 and 1 (an even number of them reaches -1 only).
    grids = [(np.arange(n) - n // 2) / (n // 2) for n in levels]
    expected = {tuple(np.round(v, 5)) for v in itertools.product(*grids)}
    assert {tuple(np.round(v.astype(float), 5)) for v in vectors} == expected and len(expected) == size
    z = 3 * rng.standard_normal((1, 20, 20, len(levels))).astype(np.float32)
    quantized = apply(module, {}, z, True, 1.0)
    np.testing.assert_allclose(apply(module, {}, quantized.codes, method="embed"), quantized.vectors, atol=1e-6)
    assert int(quantized.codes.min()) >= 0 and int(quantized.codes.max()) < size
    ends = np.full((1, 1, 2, len(levels)), 99, np.float32) * np.array([-1, 1], np.float32)[None, None, :, None]
    extremes = apply(module, {}, ends, True, 1.0)
    assert extremes.codes.ravel().tolist() == [0, size - 1]
    assert quantized.loss == 0


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_fsq_learns_with_any_number_of_levels(count):
    """Latents around 0 reach all levels; the gradient is that of the bounded latent, which is not near 0 in the middle."""
    module, _ = make(np.zeros((1, 1, 1, 1), np.float32), type="fsq", levels=(count,))
    z = jnp.linspace(-2.5, 2.5, 501).reshape(1, 1, -1, 1)
    quantized = apply(module, {}, z, True, 1.0)
    assert np.bincount(quantized.codes.ravel(), minlength=count).min() > 0.05 * z.size
    gradient = jax.grad(lambda z: jnp.sum(apply(module, {}, z, True, 1.0).vectors))(z)
    half = (count - 1) * (1 + 1e-3) / 2
    shift = np.arctanh(0.5 / half) if count % 2 == 0 and count > 2 else 0.0
    np.testing.assert_allclose(gradient, half / (count // 2) / np.cosh(z + shift) ** 2, rtol=1e-4)
    assert gradient[0, 0, 250, 0] > 0.4


def entropies(logits):
    """The mean entropy of the distributions of logits [n, k], and the entropy of their mean."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    each = -(p * np.log(np.maximum(p, 1e-300))).sum(1).mean()
    return each, -(p.mean(0) * np.log(np.maximum(p.mean(0), 1e-300))).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_lfq_reads_signs_and_its_entropies_are_those_of_the_softmax(temperature):
    options = {} if temperature == 0.01 else {"entropy_temperature": temperature}  # the published one is the default
    module, _ = make(type="lfq", bits=6, beta=0.3, entropy=0.2, **options)
    quantized = apply(module, {}, Z, True, 1.0)
    bits = (Z > 0).astype(int)
    np.testing.assert_array_equal(quantized.codes, (bits * 2 ** np.arange(6)).sum(-1))
    np.testing.assert_array_equal(apply(module, {}, quantized.codes, method="embed"), 2.0 * bits - 1)
    points = np.array(list(itertools.product([-1, 1], repeat=6)), np.float64)
    each, mean = entropies(-((Z.reshape(-1, 1, 6).astype(np.float64) - points) ** 2).sum(-1) / temperature)
    np.testing.assert_allclose(quantized.metrics["entropy_each"], each, rtol=1e-4)
    np.testing.assert_allclose(quantized.metrics["entropy_mean"], mean, rtol=1e-4)
    commitment = np.mean((Z - (2.0 * bits - 1)) ** 2)
    np.testing.assert_allclose(quantized.loss, 0.3 * commitment + 0.2 * (each - mean), rtol=1e-4)


def test_ibq_takes_the_largest_product_and_trains_every_code():
    module, _ = make(type="ibq", size=16, dim=6, beta=0.3, entropy=0.2, entropy_temperature=0.5)
    book = rng.standard_normal((16, 6)).astype(np.float32) * np.linspace(0.5, 2, 16, dtype=np.float32)[:, None]

    def run(book, z):
        quantized = module.apply({"params": {"codebook": book}}, z, True, 1.0)
        return jnp.sum(quantized.vectors), quantized

    gradient, quantized = jax.jit(jax.grad(run, has_aux=True))(jnp.asarray(book), jnp.asarray(Z))
    logits = (Z.astype(np.float64) @ book.T).reshape(-1, 16)
    codes = logits.argmax(-1)
    assert np.mean(codes != nearest(Z, book).ravel()) > 0.3
    np.testing.assert_array_equal(quantized.codes.ravel(), codes)
    np.testing.assert_allclose(quantized.vectors, book[quantized.codes], atol=1e-6)
    evaluated = apply(module, {"params": {"codebook": book}}, Z, False, 1.0)
    np.testing.assert_array_equal(evaluated.vectors, book[quantized.codes])
    each, mean = entropies(logits / 0.5)
    gap = np.mean((Z.reshape(-1, 6) - book[codes]) ** 2)
    np.testing.assert_allclose(quantized.loss, (2 + 0.3) * gap + 0.2 * (each - mean), rtol=1e-4)
    # Of sum(soft @ book) with the codes in place of soft where it is not differentiated.
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    sums = np.eye(16)[codes].sum(0)[:, None] + np.zeros((16, 6))
    total = book.sum(1)
    by_logits = p * (total - (p * total).sum(1, keepdims=True))
    np.testing.assert_allclose(gradient, sums + by_logits.T @ Z.reshape(-1, 6), atol=1e-4)
    assert np.all(np.abs(gradient).sum(1) > 0)


@pytest.mark.parametrize("kind", quantize.QUANTIZERS)
def test_every_quantiser_works_on_a_bfloat16_encoder(small, small_coders, kind):
    """Latents are compared in float32; codes, losses and gradients are those of a float32 model but for rounding."""
    options = small.config(**{"model.z_channels": 4})
    options.model.quantizer.update({"type": kind, "size": 6, "dim": 3, "levels": (3, 3), "bits": 3})
    full, short = model.build(options.model), model.build(options.model, Compute(dtype="bfloat16"))
    x = jnp.asarray(small.batch["image"][:2] / 127.5 - 1, jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = sharding.unbox(jax.jit(full.init)(keys, x))
    points = jnp.asarray(rng.standard_normal((6, 3)), jnp.float32)  # far from one another: rounding changes few codes
    if "codebook" in variables:
        variables["codebook"]["quantizer"] |= {"points": points, "total": points}
    elif "codebook" in variables["params"].get("quantizer", {}):
        variables["params"]["quantizer"]["codebook"] = points

    def loss(params, module):
        inputs = ({**variables, "params": params}, x, False, 1.0)
        mutable = [name for name in variables if name != "params"]
        (h, quantized), _ = module.apply(*inputs, method="features", rngs={"dropout": keys["dropout"]}, mutable=mutable)
        images = module.apply(variables | {"params": params}, h, method="pixels")
        return jnp.mean((images - x) ** 2) + quantized.loss, quantized

    def both(params):
        return [jax.value_and_grad(loss, has_aux=True)(params, module) for module in (full, short)]

    ((expected_loss, expected), expected_grads), ((short_loss, actual), grads) = jax.jit(both)(variables["params"])
    dtypes = {x.dtype for x in jax.tree.leaves((actual.vectors, actual.latents, actual.loss, grads))}
    assert dtypes == {np.dtype("float32")}
    assert np.mean(np.asarray(actual.codes) == expected.codes) > 0.97
    np.testing.assert_allclose(short_loss, expected_loss, rtol=0.03)
    # A code that flips takes its share of the gradient away, and another one in: 2 x 3 % at most, and rounding.
    norms = optax.tree.norm(grads) * optax.tree.norm(expected_grads)
    assert optax.tree.vdot(grads, expected_grads) / norms > 0.94


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "vq"}, "one of nearest, ema, ibq, gumbel, fsq, lfq"),
        ({"type": "ema", "unit": True}, "unit = True; it must be False"),
        ({"type": "ema", "decay": 1.0}, r"decay = 1.0; it must be in \(0, 1\)"),
        ({"type": "gumbel", "temperature": (1.0, 0.0)}, "it must be positive"),
        ({"type": "gumbel", "temperature": (1.0,)}, "two positive numbers"),
        ({"type": "fsq", "levels": (8, 1)}, "at least 2"),
        ({"type": "lfq", "bits": 30}, r"in \[1, 20\]"),
        ({"type": "lfq", "entropy_temperature": 0.0}, "entropy_temperature = 0.0; it must be positive"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        QuantizerOptions.parse(options, "model.quantizer")


def test_temperature_falls_geometrically():
    temperatures = [float(quantize.temperature((1.0, 0.25), step, 5)) for step in range(6)]
    np.testing.assert_allclose(temperatures, [1, 0.25**0.25, 0.5, 0.25**0.75, 0.25, 0.25], rtol=1e-5)
