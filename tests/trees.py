"""Comparison of trees of arrays, and options by dotted names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Asserts that two trees are equal up to `tolerance` times the largest absolute value of `expected`."""
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


def set_options(config: ConfigDict, changes: Mapping) -> ConfigDict:
    """Sets options by their dotted names ("optim.lr"), in groups that are made where missing. Returns `config`."""
    for path, value in changes.items():
        group = config
        *parents, key = path.split(".")
        for parent in parents:
            if parent not in group:
                group[parent] = ConfigDict()
            group = group[parent]
        group[key] = value
    return config


def count_bytes(tree) -> int:
    """The bytes of the arrays of a tree, one copy of each."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
