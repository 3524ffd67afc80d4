"""Splits of collections without splits of their own: `all`, `train`, and slices of them such as `all[:90%]`."""

from collections.abc import Sequence

import numpy as np

from train_jax.data.errors import DataError

_BLOCK = 1024  # bits between counts


class Selection(Sequence):
    """Ascending indices where a mask is True, in one bit each instead of eight bytes."""

    def __init__(self, mask: np.ndarray):
        blocks = -(-len(mask) // _BLOCK)
        self._bits = np.packbits(np.pad(mask, (0, blocks * _BLOCK - len(mask)))).reshape(blocks, _BLOCK // 8)
        counts = np.bitwise_count(self._bits).sum(axis=1, dtype=np.int64)
        self._counts = np.concatenate([[0], np.cumsum(counts)])  # of the blocks before

    def __len__(self) -> int:
        return int(self._counts[-1])

    def __getitem__(self, index: int) -> int:
        position = range(len(self))[index]
        block = int(np.searchsorted(self._counts, position, side="right")) - 1
        return block * _BLOCK + int(np.flatnonzero(np.unpackbits(self._bits[block]))[position - self._counts[block]])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(self._bits)).astype(dtype or np.int64)

    def rank(self, end: int) -> int:
        """Counts the indices below `end`."""
        block, rest = divmod(end, _BLOCK)
        return int(self._counts[block]) + (int(np.unpackbits(self._bits[block])[:rest].sum()) if rest else 0)


def select(count: int, split: str, source_name: str) -> range | Selection:
    """Selects the indices of a split of `count` items, in ascending order.

    A slice is one of a shuffled list, the same on every host: items are sorted by name, and names often correlate with
    the class. Raises DataError for an unknown split.
    """
    base, bracket, rest = split.partition("[")
    bounds = rest.rstrip("]").split(":") if bracket else ["", ""]
    if base not in ("all", "train") or len(bounds) != 2 or (bracket and not rest.endswith("]")):
        splits = "all (or train), and slices of it such as 'all[:90%]' and 'all[90%:]'"
        raise unknown_split_error(source_name, split, splits)

    def parse_bound(bound: str, default: int) -> int:
        if not bound:
            return default
        try:
            return round(count * float(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        except (ValueError, OverflowError):
            raise DataError(
                f"{source_name}: {bound!r} in split {split!r} is neither an integer nor a percentage"
            ) from None

    selected = slice(parse_bound(bounds[0], 0), parse_bound(bounds[1], count))
    if len(range(count)[selected]) == count:
        return range(count)
    mask = np.zeros(count, bool)
    mask[np.random.default_rng(0).permutation(count)[selected]] = True
    return Selection(mask)


def ranks(selected: range | Selection, ends: np.ndarray) -> np.ndarray:
    """Counts the selected indices below each of `ends`, int64."""
    if isinstance(selected, range):
        return ends
    return np.array([selected.rank(int(end)) for end in ends], np.int64)


def unknown_split_error(name: str, split: str, splits: str) -> DataError:
    """Makes the error for an unknown split; `splits` describes the available ones."""
    return DataError(
        f"{name} has no split {split!r}: {splits}. Choose one of these: --config.data.split=… for training, "
        "--config.evals.NAME.split=… for an evaluator, --split=… to evaluate without training"
    )
