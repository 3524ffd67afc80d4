"""Distinct records of a source: a mixture repeats records, and its parts may share some."""

import dataclasses

import numpy as np
from jaxtyping import Int64

from train_jax.data.mixture import Mixed
from train_jax.data.sources import Source
from train_jax.data.subset import Subset


def find_distinct(source: Source) -> tuple[Source, Int64[np.ndarray, "records"] | None]:
    """Finds the distinct records of a source. Returns a source of them, and for each record its index there.

    The source of distinct records is the part of a mixture that contains all others, if there is one, with its name. The
    indices are None if the source is its own, as all but mixtures are.
    """
    parts, part_of, position = _trace(source)
    if parts[0] is source:
        return source, None
    starts = np.cumsum([0, *map(len, parts)])
    places, firsts, indices = np.unique(starts[part_of] + position, return_index=True, return_inverse=True)
    if len(places) == len(source):
        return source, None
    if len(parts) == 1 and len(places) == len(parts[0]):
        return parts[0], indices
    name = f"distinct records of {source.name}"
    distinct = dataclasses.replace(source, name=name, records=Subset(source, np.sort(firsts)), shard_starts=None)
    return distinct, np.argsort(np.argsort(firsts))[indices]


def _trace(source: Source) -> tuple[list[Source], np.ndarray, np.ndarray]:
    """Traces records through mixtures, and selections of mixtures and parts, to the sources that hold them.

    Returns these sources, and for each record the number of its source and its index there.
    """
    records = source.records
    if isinstance(records, Subset) and isinstance(records.records, Source):
        parts, part_of, position = _trace(records.records)
        indices = np.asarray(records.indices)
        return parts, part_of[indices], position[indices]
    if not isinstance(records, Mixed):
        return [source], np.zeros(len(source), np.int64), np.arange(len(source))
    parts: dict[str, Source] = {}
    numbers, positions = [], []
    for part, count in zip(records.sources, records.counts, strict=True):
        inner, part_of, position = _trace(part)
        for source_of_part in inner:
            parts.setdefault(source_of_part.name, source_of_part)
        renumbered = np.array([list(parts).index(source_of_part.name) for source_of_part in inner])
        repeated = np.arange(count) % len(part)
        numbers.append(renumbered[part_of[repeated]])
        positions.append(position[repeated])
    return list(parts.values()), np.concatenate(numbers), np.concatenate(positions)
