"""Conversion of parameters between a peer (another library) and our models, by a table of entries.

Our parameters have the names of an unrolled model (`vision/transformer/block_0/attention/qkv/kernel`), even if the model
has stacked blocks.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train_jax.errors import LoadError

STATS = "batch_stats/"  # prefix of running statistics
_MAX_LISTED = 20  # tensors in an error message
_BLOCK = re.compile(r"^(.*)/block_(\d+)/(.*)$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Conversion of one of our parameters.

    Attributes:
      ours: name of our parameter.
      theirs: name of the peer's array, or names of several arrays that are concatenated or stacked.
      kind: difference of layouts, peer -> ours.
        same               no difference
        linear             [out, in] -> [in, out]
        conv               [out, in, height, width] -> [height, width, in, out]
        linear_to_conv1x1  [out, in] -> [1, 1, in, out]
        conv1x1_to_linear  [out, in, 1, 1] -> [in, out]
        qkv                [3 * heads * head_dim, width], or three [heads * head_dim, width] -> [width, 3, heads, head_dim]
        qkv_bias           the same without `width`
        qv_bias            [heads * head_dim] of queries and of values -> [2, heads, head_dim]
        merge_heads        [out, heads * head_dim] -> [heads, head_dim, out]
        split_heads        [heads * head_dim, width] -> [width, heads, head_dim]
        heads_bias         the same without `width`
        row, rows          [1, 1, width] -> [1, width], [1, length, width] -> [length, width]
        grid               [rows, columns, width] -> [rows * columns, width]; only from a peer
        vector             [1, 1, width] -> [width]
        first_row          [length, width] -> [1, width]; only from a peer
        stack_first        several arrays of one shape, stacked along a new first axis
        stack_second       the same along a new second axis
        scalar             any shape with one element -> []
      heads: number of attention heads; 0 for other parameters.
      qkv_index: index of our parameter in the peer's array, which concatenates queries, keys and values along its first
        axis; None: the whole array.
      qkv_parts: number of parameters in such an array; 2: keys and values.
    """

    ours: str
    theirs: tuple[str, ...]
    kind: str = "same"
    heads: int = 0
    qkv_index: int | None = None
    qkv_parts: int = 3

    def from_peer(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Converts the peer's arrays to our parameter, in float32."""
        arrays = [np.asarray(array).astype(np.float32) for array in arrays]
        if self.qkv_index is not None:
            arrays = [np.split(array, self.qkv_parts)[self.qkv_index] for array in arrays]
        if self.kind in ("stack_first", "stack_second"):
            return np.stack(arrays, axis=int(self.kind == "stack_second"))
        x = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        if self.kind == "linear":
            return x.T
        if self.kind == "conv":
            return x.transpose(2, 3, 1, 0)
        if self.kind == "linear_to_conv1x1":
            return x.T[None, None]
        if self.kind == "conv1x1_to_linear":
            return x[:, :, 0, 0].T
        if self.kind == "qkv":
            return x.T.reshape(x.shape[1], 3, self.heads, -1)
        if self.kind == "qkv_bias":
            return x.reshape(3, self.heads, -1)
        if self.kind == "qv_bias":
            return x.reshape(2, self.heads, -1)
        if self.kind == "merge_heads":
            return x.T.reshape(self.heads, -1, x.shape[0])
        if self.kind == "split_heads":
            return x.T.reshape(x.shape[1], self.heads, -1)
        if self.kind == "heads_bias":
            return x.reshape(self.heads, -1)
        if self.kind in ("row", "rows"):
            return x[0]
        if self.kind == "grid":
            return x.reshape(-1, x.shape[-1])
        if self.kind == "vector":
            return x[0, 0]
        if self.kind == "first_row":
            return x[:1]
        return x.reshape(()) if self.kind == "scalar" else x

    def to_peer(self, x: np.ndarray) -> list[np.ndarray]:
        """Converts our parameter to the peer's arrays, or to a third of an array: the inverse of `from_peer`."""
        if self.kind == "linear":
            x = x.T
        elif self.kind == "conv":
            x = x.transpose(3, 2, 0, 1)
        elif self.kind == "linear_to_conv1x1":
            x = x[0, 0].T
        elif self.kind == "conv1x1_to_linear":
            x = x.T[:, :, None, None]
        elif self.kind == "qkv":
            x = x.reshape(x.shape[0], -1).T
        elif self.kind in ("qkv_bias", "qv_bias", "heads_bias"):
            x = x.reshape(-1)
        elif self.kind == "split_heads":
            x = x.reshape(x.shape[0], -1).T
        elif self.kind == "merge_heads":
            x = x.reshape(-1, x.shape[-1]).T
        elif self.kind in ("row", "rows"):
            x = x[None]
        elif self.kind == "vector":
            x = x[None, None]
        return [np.ascontiguousarray(part) for part in np.split(x, len(self.theirs))] if len(self.theirs) > 1 else [x]


def from_peer(tensors: Mapping, entries: Sequence[Entry], where: str, ignored: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Converts the parameters of a peer to ours, by name.

    Args:
      tensors: name -> array-like.
      entries: conversion table.
      where: name of the file for messages.
      ignored: regular expressions for names of the peer that may be ignored.

    Raises LoadError for missing tensors, and for tensors that no entry uses, since a model with unknown parts would compute
    something else.
    """
    expected = [name for entry in entries for name in entry.theirs]
    missing = [name for name in expected if name not in tensors]
    unused = set(tensors) - set(expected)
    unknown = sorted(name for name in unused if not any(re.search(pattern, name) for pattern in ignored))
    for problem, names in (("lacks", missing), ("has parts that are not understood:", unknown)):
        if names:
            listed = [f"{name} {list(tensors[name].shape)}" if name in tensors else name for name in names[:_MAX_LISTED]]
            more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
            raise LoadError(f"{where} {problem} {len(names)} tensor(s): {', '.join(listed)}{more}")
    return {entry.ours: _from_peer(entry, tensors, where) for entry in entries}


def _from_peer(entry: Entry, tensors: Mapping, where: str) -> np.ndarray:
    """Converts the parameter of one entry. Raises LoadError for a tensor of an invalid shape or of integers."""
    arrays = [np.asarray(tensors[name]) for name in entry.theirs]
    for name, x in zip(entry.theirs, arrays, strict=True):
        if x.dtype.kind in "iub":
            raise LoadError(f"{where}: {name} is {x.dtype}; quantised weights are not supported, only floats")
    try:
        return entry.from_peer(arrays)
    except (IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in zip(entry.theirs, arrays, strict=True))
        raise LoadError(f"{where}: {shapes} cannot be {entry.ours} ({error})") from error


def to_peer(params: Mapping[str, np.ndarray], entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Converts our parameters to those of a peer, by name.

    Raises KeyError unless the entries use each parameter exactly once.
    """
    unused = dict(params)
    tensors: dict[str, np.ndarray] = {}
    qkv_parts: dict[str, list[np.ndarray]] = {}
    for entry in sorted(entries, key=lambda entry: entry.qkv_index or 0):
        arrays = entry.to_peer(unused.pop(entry.ours))
        if entry.qkv_index is None:
            tensors.update(zip(entry.theirs, arrays, strict=True))
        else:
            qkv_parts.setdefault(entry.theirs[0], []).extend(arrays)
    if unused:
        raise KeyError(f"no entry for {', '.join(sorted(unused)[:3])}")
    return tensors | {name: np.concatenate(parts) for name, parts in qkv_parts.items()}


def unflatten(flat: Mapping[str, np.ndarray], scan: bool) -> dict:
    """Builds the parameter tree of a model from a flat dict. If `scan`, the blocks of transformers are stacked."""
    if scan:
        flat = _stack_blocks(flat)
    tree: dict = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree


def flatten(tree: Mapping) -> dict[str, np.ndarray]:
    """Flattens the parameter tree of a stacked or unrolled model to a dict with unrolled names."""
    params: dict[str, np.ndarray] = {}

    def visit(prefix: str, value) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{prefix}/{key}" if prefix else key, item)
        elif "/blocks/" in prefix:
            for depth, layer in enumerate(np.asarray(value)):
                params[prefix.replace("/blocks/", f"/block_{depth}/")] = layer
        else:
            params[prefix] = np.asarray(value)

    visit("", tree)
    return params


def hash_arrays(digest: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Adds names, dtypes, shapes and bytes of arrays to a hash of `hashlib`, in the order of their names."""
    for name, x in sorted(arrays.items()):
        digest.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(np.ascontiguousarray(x).view(np.uint8).data)


def _stack_blocks(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacks the parameters of the blocks of transformers in a flat dict."""
    unstacked: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, value in params.items():
        match = _BLOCK.match(name)
        if match is None:
            unstacked[name] = value
        else:
            layers.setdefault(f"{match[1]}/blocks/{match[3]}", {})[int(match[2])] = value
    return unstacked | {name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in layers.items()}
