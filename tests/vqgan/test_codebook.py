"""Usage of a codebook and moves of its codes, computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import codebook


def test_usage_is_counted_over_a_window_of_updates(monkeypatch):
    monkeypatch.setattr(codebook, "WINDOW", 3)
    state = codebook.init_usage(4)
    batches = [[0, 0, 1], [0, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]]
    usage = []
    update_usage = jax.jit(codebook.update_usage)
    for step, codes in enumerate(batches):
        state, metrics = update_usage(state, jnp.asarray(codes, jnp.int32).reshape(1, 1, -1), step)
        recent = {c for past in batches[max(0, step - 2) : step + 1] for c in past}
        assert metrics["usage"] == len(recent) / 4
        usage.append(float(metrics["usage"]))
    assert usage == [0.5, 0.5, 0.75, 0.5, 0.5]


def test_perplexity_of_evenly_used_codes_is_their_number():
    codes = jnp.arange(8, dtype=jnp.int32).reshape(1, 2, 4)
    _, metrics = jax.jit(codebook.update_usage)(codebook.init_usage(16), codes, 0)
    np.testing.assert_allclose(metrics["perplexity"], 8, rtol=1e-5)


def test_kmeans_finds_clusters():
    rng = np.random.default_rng(0)
    true = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    points = (true[:, None] + 0.1 * rng.standard_normal((4, 50, 2))).astype(np.float32).reshape(-1, 2)
    initial = points[[0, 50, 100, 150]] + 2
    centers = np.asarray(jax.jit(codebook.fit_kmeans)(points, initial))
    np.testing.assert_allclose(centers, points.reshape(4, 50, 2).mean(1), atol=1e-5)


def test_dead_codes_move_onto_latents_and_count_as_used():
    state, candidates = codebook.init_usage(3) | {"last": jnp.array([7, 2, -1])}, jnp.full((3, 2), 5.0)
    book = {"points": jnp.zeros((3, 2)), "count": jnp.full((3,), 9.0), "total": jnp.zeros((3, 2))}
    state, book, moved = codebook.move_codes(state, book, candidates, jnp.asarray(8), jnp.asarray(False), 6, False)
    assert moved.tolist() == [False, True, True]
    assert book["points"].tolist() == book["total"].tolist() == [[0, 0], [5, 5], [5, 5]]
    assert book["count"].tolist() == [9, 1, 1]
    assert state["last"].tolist() == [7, 8, 8]
    _, _, moved = codebook.move_codes(state, book, candidates, jnp.asarray(9), jnp.asarray(False), 6, False)
    assert not moved.any()
    first = jnp.asarray(True)  # of all updates that were made: the first five were skipped
    _, _, moved = codebook.move_codes(
        codebook.init_usage(3), {"points": candidates}, candidates, jnp.asarray(5), first, 0, True
    )
    assert moved.all(), "k-means moves all codes after the first update"


@pytest.mark.parametrize(
    "is_ema, revive_after, kmeans, samples_later", [(True, 0, False, False), (False, 0, True, False), (False, 5, True, True)]
)
def test_latents_are_sampled_only_by_updates_that_may_move_codes(is_ema, revive_after, kmeans, samples_later):
    rule = codebook.Rule(4, is_ema, 0.9, revive_after, kmeans)
    book = {"points": jnp.zeros((4, 2)), "count": jnp.ones((4,)), "total": jnp.zeros((4, 2))}
    arguments = codebook.init_usage(4), book, jnp.zeros((2, 2, 3), jnp.int32), jnp.zeros((2, 2, 3, 2)), jax.random.key(0)
    program = jax.make_jaxpr(rule.update)(*arguments, jnp.asarray(1), jnp.asarray(False))
    choices = [eqn.params["branches"] for eqn in program.eqns if eqn.primitive.name == "cond"]
    assert len(choices) == kmeans and " sort[" not in str([e for e in program.eqns if e.primitive.name != "cond"])
    for later, first in choices:
        assert (" sort[" in str(later)) == samples_later and " sort[" in str(first)


def test_candidates_are_latents_of_the_batch():
    latents = jnp.arange(24.0).reshape(2, 2, 3, 2)
    candidates = codebook.sample_candidates(latents, 4, jnp.asarray(False), jax.random.key(0), True)
    rows = {tuple(row) for row in np.asarray(latents).reshape(-1, 2).tolist()}
    chosen = [tuple(row) for row in np.asarray(candidates).tolist()]
    assert set(chosen) <= rows and len(set(chosen)) == 4
