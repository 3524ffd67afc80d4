"""Rotary position embeddings of a grid, against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from nn_jax.rotary import grid_angles, rotate


@pytest.mark.parametrize("columns_first", [True, False])
def test_pairs_turn_as_complex_numbers(columns_first):
    """Frequency i of 2 turns by 10000 ** -(i / 2) for each unit of a coordinate."""
    side, offset, reference = 3, 1.0, 6
    angles = grid_angles(side, 8, columns_first, offset, reference)
    x = np.random.default_rng(0).standard_normal((2, 9, 1, 8)).astype(np.float32)
    y = np.asarray(rotate(jnp.asarray(x), jnp.asarray(angles[None])))
    for patch in range(9):
        row, column = ((patch // 3 + offset) * 2, (patch % 3 + offset) * 2)
        first, second = (column, row) if columns_first else (row, column)
        for pair, angle in enumerate((first, first / 100, second, second / 100)):
            turned = (x[:, patch, 0, 2 * pair] + 1j * x[:, patch, 0, 2 * pair + 1]) * np.exp(1j * angle)
            np.testing.assert_allclose(y[:, patch, 0, 2 * pair], turned.real, atol=1e-5)
            np.testing.assert_allclose(y[:, patch, 0, 2 * pair + 1], turned.imag, atol=1e-5)
    assert y.dtype == np.float32 and rotate(jnp.asarray(x, jnp.bfloat16), jnp.asarray(angles[None])).dtype == jnp.bfloat16
