"""Rotary position embeddings of a grid, against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax.rotary import grid_angles, rotate, turns


@pytest.mark.parametrize("columns_first", [True, False])
def test_pairs_turn_as_complex_numbers(columns_first):
    """Frequency i of 2 turns by 10000 ** -(i / 2) for each unit of a coordinate."""
    side, offset, reference = 3, 1.0, 6
    angles = grid_angles((side, side), 8, columns_first=columns_first, offset=offset, stretch=reference / side)
    x = np.random.default_rng(0).standard_normal((2, 9, 1, 8)).astype(np.float32)
    y = np.asarray(rotate(jnp.asarray(x), turns(jnp.asarray(angles[None]))))
    for patch in range(9):
        row, column = ((patch // 3 + offset) * 2, (patch % 3 + offset) * 2)
        first, second = (column, row) if columns_first else (row, column)
        for pair, angle in enumerate((first, first / 100, second, second / 100)):
            turned = (x[:, patch, 0, 2 * pair] + 1j * x[:, patch, 0, 2 * pair + 1]) * np.exp(1j * angle)
            np.testing.assert_allclose(y[:, patch, 0, 2 * pair], turned.real, atol=1e-5)
            np.testing.assert_allclose(y[:, patch, 0, 2 * pair + 1], turned.imag, atol=1e-5)
    rotation = turns(jnp.asarray(angles[None]))
    assert y.dtype == np.float32 and rotate(jnp.asarray(x, jnp.bfloat16), rotation).dtype == jnp.bfloat16
    assert not np.asarray(rotate(jnp.asarray(x), 0 * rotation)).any(), "no position"


def test_rotary_scores_depend_on_offsets_of_rows_and_columns_alone():
    """A pair of features is a complex number, which a position multiplies by exp(i position base^(-k / half))."""
    grid, dim = (3, 4), 8
    rotation = turns(jnp.asarray(grid_angles(grid, dim))[None])
    q, k = (np.random.default_rng(i).standard_normal((1, 12, 1, dim)).astype(np.float32) for i in (0, 1))
    rotated = [np.asarray(rotate(jnp.asarray(x), rotation))[0, :, 0] for x in (q, k)]
    rows, columns = np.indices(grid).reshape(2, -1)
    frequencies = 10_000.0 ** -(np.arange(2) / 2)
    for x, y in zip((q, k), rotated, strict=True):
        angles = np.concatenate([rows[:, None] * frequencies, columns[:, None] * frequencies], axis=1)
        expected = x[0, :, 0].reshape(12, -1, 2) @ np.array([1, 1j]) * np.exp(1j * angles)
        np.testing.assert_allclose(y.reshape(12, -1, 2) @ np.array([1, 1j]), expected, atol=1e-6)
    same = [np.asarray(rotate(jnp.broadcast_to(x[:, :1], q.shape), rotation))[0, :, 0] for x in (q, k)]
    scores = same[0] @ same[1].T
    np.testing.assert_allclose(scores[5, 0], scores[11, 6], atol=1e-5)  # a row and a column apart
    np.testing.assert_allclose(scores[6, 4], scores[10, 8], atol=1e-5)  # two columns apart
