"""Sampling against probabilities counted by hand, and against a plain loop."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax import transformer
from nn_jax.attention import Visible
from nn_jax.decoding import Sampling, allowed_codes, decode, has_filters, sample_code

RNG = np.random.default_rng(0)
LOGITS = np.array([1.5, -0.3, 0.9, 0.2, -2.0, 0.9], np.float32)


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def by_hand(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities after temperature, then top-k, then top-p, code by code."""
    p = softmax(logits.astype(np.float64) / temperature)
    order = sorted(range(len(p)), key=lambda c: (-p[c], c))[: top_k or len(p)]
    total = sum(p[c] for c in order)
    probabilities, cumulative = np.zeros(len(p)), 0.0
    for c in order:
        if cumulative >= top_p:
            break
        probabilities[c] = p[c] / total
        cumulative += probabilities[c]
    return probabilities / probabilities.sum()


@functools.partial(jax.jit, static_argnums=2)
def sample(keys, sampling, filtered):
    return jax.vmap(lambda key: sample_code(key, jnp.asarray(LOGITS), sampling, filtered))(keys)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_k": 2},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"temperature": 1.5, "top_k": 4, "top_p": 0.8},
    ],
)
def test_codes_are_drawn_with_the_probabilities_counted_by_hand(options):
    count = 40_000
    filtered = has_filters(options.get("top_k", 0), options.get("top_p", 1))
    codes = sample(jax.random.split(jax.random.key(1), count), Sampling(**options), filtered)
    actual, expected = np.bincount(codes, minlength=6) / count, by_hand(LOGITS, **options)
    assert not actual[expected == 0].any()
    assert np.all(np.abs(actual - expected) < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_temperature_zero_takes_the_most_likely_code():
    keys = jax.random.split(jax.random.key(0), 50)
    for filtered in (False, True):
        codes = sample(keys, Sampling(0.0, top_p=0.5), filtered)
        assert set(np.asarray(codes)) == {0}


def test_filters_that_let_everything_through_change_nothing():
    keys = jax.random.split(jax.random.key(0), 200)
    plain = sample(keys, Sampling(), False)
    for sampling in (Sampling(top_p=1.0), Sampling(top_k=6), Sampling(top_k=0)):
        np.testing.assert_array_equal(sample(keys, sampling, True), plain)


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (7, 1.0), (40, 0.6), (1, 1.0), (0, 1e-9), (100, 0.999), (5000, 1.0)])
@pytest.mark.parametrize("kind", ["normal", "ties", "wide", "equal"])
def test_allowed_codes_are_the_first_of_a_sorted_list(kind, top_k, top_p):
    """Of 1,000 codes, with ties, zeros of both signs and logits far apart."""
    rng = np.random.default_rng(7)
    logits = rng.normal(size=1000).astype(np.float32)
    if kind == "ties":
        logits = np.round(2 * logits) / 2 * rng.choice([-1, 1], 1000).astype(np.float32)
    elif kind == "wide":
        logits *= 10.0 ** rng.integers(-30, 3, 1000)
    elif kind == "equal":
        logits[:] = -3.5
    actual = jax.jit(allowed_codes)(jnp.asarray(logits), Sampling(1.0, top_k, top_p))
    order = sorted(range(1000), key=lambda c: (-logits[c], c))[: top_k or 1000]
    p = softmax(logits[order].astype(np.float64))
    before = np.cumsum(p) - p
    expected = np.zeros(1000, bool)
    expected[order] = (before < top_p) | (top_p == 1)
    differ = np.flatnonzero(np.asarray(actual) != expected)
    # A sum that is as near to top_p as float32 tells may fall on either side.
    assert len(differ) <= 1 and all(abs(before[order.index(code)] - top_p) < 1e-6 for code in differ)


def markov(v=4, length=3):
    """A model whose logits depend on the position and on the code before: `(first logits, tables)`."""
    return RNG.normal(size=v).astype(np.float32) * 1.5, RNG.normal(size=(length, v, v)).astype(np.float32) * 1.5


def chain(tables):
    tables = jnp.asarray(tables)
    return lambda codes, index, cache: (tables[index, codes], cache + 1)


def test_sequences_have_the_probabilities_of_the_chain_rule():
    first, tables = markov()
    count = 60_000
    keys = jax.random.split(jax.random.key(3), count)
    codes, log_probs, (_, steps) = jax.jit(
        lambda keys: decode(
            chain(tables), jnp.tile(first, (count, 1)), jnp.zeros(()), keys, Sampling(), positions=jnp.arange(3)
        )
    )(keys)
    assert steps == 3
    expected = {
        s: softmax(first)[s[0]] * softmax(tables[0, s[0]])[s[1]] * softmax(tables[1, s[1]])[s[2]]
        for s in itertools.product(range(4), repeat=3)
    }
    counts = dict.fromkeys(expected, 0)
    for row in np.asarray(codes):
        counts[tuple(int(c) for c in row)] += 1
    for s, p in expected.items():
        assert abs(counts[s] / count - p) < 5 * np.sqrt(p * (1 - p) / count)
    for row, values in zip(np.asarray(codes[:20]), np.asarray(log_probs[:20]), strict=True):
        np.testing.assert_allclose(values.sum(), np.log(expected[tuple(int(c) for c in row)]), atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_acts_at_every_step(guidance):
    """The most likely codes, by a plain loop over both chains."""
    (f1, t1), (f0, t0) = markov(8, 6), markov(8, 6)
    expected, c, u = [], f1, f0
    for i in range(6):
        code = int(np.argmax(u + guidance * (c - u)))
        expected.append(code)
        c, u = t1[i, code], t0[i, code]
    both = jnp.stack([t1, t0])

    def step(codes, index, cache):
        assert codes.shape == (4,)
        pairs = codes.reshape(2, 2)
        return jax.vmap(lambda pair: both[jnp.arange(2), index, pair])(pairs).reshape(4, -1), cache

    logits = jnp.tile(jnp.stack([f1, f0]), (2, 1))
    program = jax.jit(functools.partial(decode, step, positions=jnp.arange(6), guided=True))
    codes, log_probs, _ = program(logits, 0, jax.random.split(jax.random.key(0), 2), Sampling(0.0, guidance=guidance))
    np.testing.assert_array_equal(codes, [expected, expected])
    conditional = [softmax(f1)[expected[0]], *(softmax(t1[i, expected[i]])[expected[i + 1]] for i in range(5))]
    np.testing.assert_allclose(log_probs[0], np.log(conditional), atol=1e-5)


def test_known_codes_stay_and_the_others_follow_from_them():
    first, tables = markov(8, 5)
    known_codes = np.array([[0, 7, 0, 3, 0]])
    known_mask = np.array([[False, True, False, True, False]])
    codes, _, _ = jax.jit(functools.partial(decode, chain(tables)))(
        jnp.asarray(first)[None], 0, jax.random.split(jax.random.key(0), 1), Sampling(0.0),
        positions=jnp.arange(5), known_codes=jnp.asarray(known_codes), known_mask=jnp.asarray(known_mask),
    )  # fmt: skip
    expected = [np.argmax(first), 7, np.argmax(tables[1, 7]), 3, np.argmax(tables[3, 3])]
    np.testing.assert_array_equal(codes[0], expected)


def test_a_sequence_is_the_same_in_any_batch_and_in_parts():
    first, tables = markov(8, 6)
    keys = jax.random.split(jax.random.key(5), 5)
    program = jax.jit(functools.partial(decode, chain(tables)))

    def run(keys, positions, start=None, index=0):
        logits, cache = (jnp.tile(first, (len(keys), 1)), jnp.zeros(())) if start is None else start
        return program(logits, cache, keys, Sampling(), positions=positions, start=index)

    expected, _, _ = run(keys, jnp.arange(6))
    np.testing.assert_array_equal(run(keys[2:4], jnp.arange(6))[0], expected[2:4])
    front, _, carry = run(keys, jnp.arange(4))
    back, _, _ = run(keys, jnp.arange(4, 6), carry, 4)
    np.testing.assert_array_equal(jnp.concatenate([front, back], axis=1), expected)


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_token_by_token_equals_the_whole_sequence(scan):
    module = transformer.Transformer(16, 2, 4, causal=True, scan=scan)
    x = jnp.asarray(RNG.normal(size=(2, 6, 16)), jnp.float32)
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), x))
    expected = jax.jit(module.apply)(variables, x)
    unrolled = module.clone(scan=False)
    params = {"params": transformer.unstack_blocks(variables["params"])}
    prefill = jax.jit(lambda x, caches: unrolled.apply(params, x, caches, method="prefill"))
    step = jax.jit(lambda *inputs: unrolled.apply(params, *inputs, method="decode_step"))
    for prefix in (1, 4):
        y, prefixes = prefill(x[:, :prefix], unrolled.empty_caches(2, prefix))
        prefixes, caches, parts = tuple((p,) for p in prefixes), unrolled.empty_caches(2, 6 - prefix), [y]
        for i in range(6 - prefix):
            visible = Visible(None, None, jnp.arange(6 - prefix) <= i)
            y, caches = step(x[:, prefix + i : prefix + i + 1], prefixes, caches, jnp.asarray(i), (visible,))
            parts.append(y)
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=1e-5)
    if scan:
        with pytest.raises(ValueError, match="unrolled"):
            module.apply(params, x, caches, method="prefill")
