"""Attention of the shapes and platforms that have kernels of their own: the same as the plain formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax import attention

RNG = np.random.default_rng(0)


def draw(queries: int, keys: int, dtype=jnp.float32):
    shapes = ((2, queries, 2, 8), (2, keys, 2, 8), (2, keys, 2, 8))
    return [jnp.asarray(RNG.standard_normal(shape), dtype) for shape in shapes]


def plain(q, k, v, causal: bool):
    """softmax(q k^T / sqrt(h)) v."""
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, -1), v)


@pytest.mark.parametrize("queries, keys, causal", [(5, 5, True), (5, 5, False), (4, 7, False), (5, 6, False), (6, 6, True)])
def test_odd_lengths_are_padded_without_effect(queries, keys, causal):
    inputs = draw(queries, keys)
    lengths = []

    def kernel(q, k, v, **options):
        lengths.append({q.shape[1] % 2, k.shape[1] % 2})
        return jax.nn.dot_product_attention(q, k, v, implementation="xla", **options)

    def results(attend):
        def loss(*inputs):
            return jnp.sum(jnp.sin(attend(*inputs, causal)))

        return attend(*inputs, causal), jax.grad(loss, (0, 1, 2))(*inputs)

    actual, expected = results(functools.partial(attention.with_even_lengths, kernel)), results(plain)
    assert lengths and all(odd == {0} for odd in lengths)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), actual, expected)


def test_fused_attention_is_for_gpus_16_bits_and_no_mask(monkeypatch):
    calls = []

    def record(q, k, v, mask=None, **options):
        calls.append(options.get("implementation"))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    monkeypatch.setattr(attention, "recomputing_attention", record)
    short, long = draw(4, 4, jnp.bfloat16), draw(4, 4)
    attention.attend(*short)
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    attention.attend(*short, causal=True)
    attention.attend(*long)
    attention.attend(*short, mask=jnp.ones((4, 4), bool))
    attention.attend(*(jnp.zeros((1, 4, 1, 12), jnp.bfloat16) for _ in range(3)))
    attention.attend(*(jnp.zeros((1, 4, 1, 512), jnp.bfloat16) for _ in range(3)))
    assert calls == [None, "cudnn", None, None, None, None]


CASES = {"causal": True, "all": False, "random": RNG.random((2, 1, 6, 7)) < 0.5, "per head": RNG.random((2, 6, 7)) < 0.5}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_attention_that_recomputes_its_scores_is_attention(name, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    causal = name == "causal"
    inputs = draw(6, 6 if causal else 7, dtype)
    mask = None if isinstance(CASES[name], bool) else jnp.asarray(CASES[name]).at[..., 0].set(True)

    def twin(q, k, v):
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, -1), v)

    def results(attend, inputs):
        def loss(*inputs):
            y = attend(*inputs).astype(jnp.float32)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(*inputs)

    actual = results(functools.partial(attention.attend, mask=mask, causal=causal), inputs)
    wide = [x.astype(jnp.float32) for x in inputs]
    expected = results(functools.partial(plain, causal=True) if causal else twin, wide)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=tolerance)
    assert actual[0][0].dtype == dtype
    residuals = jax.vjp(functools.partial(attention.attend, mask=mask, causal=causal), *inputs)[1]
    assert not [x for x in jax.tree.leaves(residuals) if x.shape[-2:] == (6, 7) and x.dtype != bool]



def test_shared_keys_and_values_are_repeated_ones():
    """In attention and from a cache: heads 0 and 1 share those of group 0, heads 2 and 3 those of group 1."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 5, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    whole = attention.attend(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2), causal=True)
    prefix = attention.KVCache.empty(2, 3, 2, 4, jnp.float32).write(k[:, :3], v[:, :3], 0)
    cache = attention.KVCache.empty(2, 2, 2, 4, jnp.float32).write(k[:, 3:], v[:, 3:], 0)
    visible = attention.Visible(None, None, jnp.ones(2, bool))
    last = attention.attend_to_caches(q[:, 4], (prefix,), cache, visible)
    np.testing.assert_allclose(last, whole[:, 4], atol=1e-6)
