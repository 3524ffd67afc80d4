"""Low-rank adaptation (LoRA, arXiv 2106.09685): training adds products of two thin matrices to frozen kernels.

The adapters of a player are the subtree `lora` of its parameters, under the paths of their kernels: `a`, `b` and `scale`.
The models do not know them: losses and evaluators get kernels to which the products have been added.
"""

import math
import re
import string
import zlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from train_jax.errors import ConfigError
from train_jax.sharding import is_box, kernel_axes, path_name

ADAPTERS = "lora"  # name of the subtree
_FROZEN = rf"^(?!.*/{ADAPTERS}/.*/(a|b)$)"  # all parameters but those of adapters


def freeze_kernels(optim: ConfigDict) -> ConfigDict:
    """Returns the options of the optimiser, with all parameters but the adapters frozen if there are adapters."""
    if not optim.lora:
        return optim
    optim = optim.copy_and_resolve_references()
    optim.freeze = (*optim.freeze, _FROZEN)
    return optim


def kernel_path(name: str) -> str:
    """Returns the path that a parameter of an adapter has below its kernel's, and other paths unchanged."""
    return name.replace(f"/{ADAPTERS}/", "/", 1)


def add_adapters(
    params: Mapping, adapters: Sequence[tuple[str, int, float]], freeze: Sequence[str], rng: jax.Array
) -> dict:
    """Adds the subtrees of adapters to boxed parameters: `a` normally distributed, `b` zero.

    Args:
      params: parameters by player, with their logical axes.
      adapters: `(pattern, rank, alpha)`: a regular expression for kernels, the rank of their adapters, and the factor of
        the product times the rank. The first match counts.
      freeze: regular expressions of parameters that have no adapters.

    Shapes are those of the kernel and the rank, with outputs of size 1 in `a`, and inputs of size 1 in `b`. So a stack of
    layers has an adapter for each, and query, key and value theirs. Raises ConfigError for a pattern that matches no kernel
    that is not frozen.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
    boxes = {path_name(path): x for path, x in leaves if is_box(x)}
    kernels = {name: x for name, x in boxes.items() if name.endswith("/kernel") and kernel_axes(x.names) is not None}
    frozen = {name for name in kernels if any(re.search(pattern, name) for pattern in freeze)}
    kernels = {name: x for name, x in kernels.items() if name not in frozen}
    added = {player: {} for player in params}
    matched = set()
    for name, kernel in kernels.items():
        index = next((i for i, (pattern, *_) in enumerate(adapters) if re.search(pattern, name)), None)
        if index is not None:
            player, *path = name.split("/")
            key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
            added[player][tuple(path)] = _make_adapter(kernel, *adapters[index][1:], key)
            matched.add(index)
    for index, (pattern, *_) in enumerate(adapters):
        if index not in matched:
            if any(re.search(pattern, name) for name in frozen):
                raise ConfigError(
                    f"config.optim.lora: {pattern!r} matches kernels that config.optim.freeze = {tuple(freeze)} freezes. "
                    "Set config.optim.freeze = (): with adapters all other parameters are frozen anyway"
                )
            some = ", ".join(sorted(kernels)[:8])
            raise ConfigError(f"config.optim.lora: {pattern!r} is the first match of no kernel; they are named {some}, …")
    return {
        player: {**tree, ADAPTERS: unflatten_dict(added[player])} if added[player] else tree
        for player, tree in params.items()
    }


def _make_adapter(kernel: nn.LogicallyPartitioned, rank: int, alpha: float, key: jax.Array) -> dict:
    shape, names = kernel.value.shape, kernel.names
    inputs, outputs = kernel_axes(names)

    def make(ones: Sequence[int], values):
        sizes = (*(1 if axis in ones else size for axis, size in enumerate(shape)), rank)
        axes = (*(None if axis in ones else name for axis, name in enumerate(names)), None)
        return nn.LogicallyPartitioned(values(sizes), axes)

    std = math.prod(shape[axis] for axis in inputs) ** -0.5
    a = make(outputs, lambda sizes: std * jax.random.normal(key, sizes))
    return {"a": a, "b": make(inputs, jnp.zeros), "scale": jnp.asarray(alpha / rank, jnp.float32)}


def merge(params: Mapping) -> dict:
    """Adds the products of adapters to their kernels, and leaves the adapters out. Other players are returned as they are.

    Args:
      params: parameters by player, JAX or NumPy arrays.
    """
    return {
        player: _merge_tree({name: x for name, x in tree.items() if name != ADAPTERS}, tree[ADAPTERS])
        if ADAPTERS in tree
        else tree
        for player, tree in params.items()
    }


def _merge_tree(tree, adapters: Mapping):
    if not isinstance(tree, Mapping):
        return tree + adapters["scale"] * _product(adapters["a"], adapters["b"])
    return {name: _merge_tree(x, adapters[name]) if name in adapters else x for name, x in tree.items()}


def _product(a, b):
    """Computes the sum of `a * b` over their last axis, as a matrix product. Other axes are broadcast."""
    letters, *operands = string.ascii_lowercase[: a.ndim - 1], a, b
    subscripts = ["".join(x for x, size in zip(letters, operand.shape, strict=False) if size > 1) for operand in operands]
    output = "".join(letter for letter in letters if any(letter in operand for operand in subscripts))
    squeezed = [x.squeeze(tuple(axis for axis, size in enumerate(x.shape[:-1]) if size == 1)) for x in operands]
    einsum = np.einsum if isinstance(a, np.ndarray) else jnp.einsum
    product = einsum(f"{subscripts[0]}z,{subscripts[1]}z->{output}", *squeezed)
    return product.reshape(np.broadcast_shapes(a.shape, b.shape)[:-1])
