"""Accuracies with 95 % confidence intervals, and nearest neighbours among embeddings."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from train_jax.config import EvaluatorOptions
from train_jax.options import option

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclasses.dataclass(frozen=True)
class AccuracyOptions(EvaluatorOptions):
    """Options of evaluators that report accuracies."""

    batch_size: int = option(256, "number of images per batch, over all devices and hosts", least=1)
    intervals: bool = option(False, "whether to report 95 % confidence intervals, as …/low and …/high")


def wilson_interval(
    share: float | Float[np.ndarray, "n"], count: int | Int[np.ndarray, "n"]
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """Computes Wilson's 95 % score interval of a proportion (JASA 22, 1927, p. 209): the lower and the upper limit.

    Args:
      share: proportion of successes among `count` independent trials.
    """
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return centre - half, centre + half


def compute_accuracy(name: str, correct: Bool[np.ndarray, "n"], intervals: bool) -> dict[str, float]:
    """Computes the share of correct answers, with Wilson's limits as `name/low` and `name/high` if `intervals`."""
    share = float(correct.mean())
    return _with_limits(name, share, wilson_interval(share, len(correct)) if intervals else None)


def compute_mean_per_class(
    correct: Bool[np.ndarray, "n"], labels: Int[np.ndarray, "n"], intervals: bool
) -> dict[str, float]:
    """Computes `mean_per_class`: the mean over classes of the accuracy of each class that occurs in `labels`.

    The limits combine Wilson's limits of the classes by MOVER, the variance estimates recovered from them (Zou, Huang and
    Zhang, Computational Statistics & Data Analysis 53, 2009, p. 1080).
    """
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shares = np.bincount(index, correct) / counts
    mean, limits = float(shares.mean()), None
    if intervals:
        low, high = wilson_interval(shares, counts)
        limits = tuple(mean + sign * np.linalg.norm(shares - x) / len(counts) for sign, x in ((-1, low), (1, high)))
    return _with_limits("mean_per_class", mean, limits)


def _with_limits(name: str, value: float, limits: tuple | None) -> dict[str, float]:
    return {name: value} | ({} if limits is None else {f"{name}/low": float(limits[0]), f"{name}/high": float(limits[1])})


def find_nearest(
    queries: Float[np.ndarray, "n dim"], items: Float[np.ndarray, "m dim"], k: int
) -> Int[np.ndarray, "n k"]:
    """Finds the indices of each query's min(k, m) nearest items by inner product, best first.

    Ties are broken by index, so that a collapsed model scores at chance level.
    """
    k = min(k, len(items))
    chunk = max(1, 2**24 // len(items))  # queries per chunk: 64 MiB of similarities
    nearest = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk):
        similarities = queries[start : start + chunk] @ items.T
        similarities[np.isnan(similarities)] = -np.inf
        thresholds = np.partition(similarities, -k, axis=1)[:, -k]
        for row, (values, threshold) in enumerate(zip(similarities, thresholds, strict=True), start):
            candidates = np.flatnonzero(values >= threshold)  # k items, and those that equal the last of them
            nearest[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return nearest


def find_first_relevant_rank(
    queries: np.ndarray, items: np.ndarray, is_relevant: Callable[[int, int], bool], k: int
) -> np.ndarray:
    """Finds the rank of the first relevant item for each query: int [queries].

    Ranks count from 0. The rank is k if none of the k nearest items is relevant.
    """
    ranks = np.full(len(queries), k)
    for query, row in enumerate(find_nearest(queries, items, k)):
        hits = (rank for rank, item in enumerate(row) if is_relevant(query, int(item)))
        ranks[query] = next(hits, k)
    return ranks


def vote(
    queries: Float32[np.ndarray, "n dim"],
    items: Float32[np.ndarray, "m dim"],
    labels: Int[np.ndarray, "m"],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> Float[np.ndarray, "n classes"]:
    """Computes the votes of the k nearest items for the classes (weighted kNN of DINO, arXiv 2104.14294, section 4.1).

    The vote of an item with cosine s to the query has the weight exp(s / temperature), relative to a cosine of 1.

    Args:
      queries, items: embeddings of unit norm.
      labels: class of each item, below `classes`.
    """
    votes = np.zeros((len(queries), classes))
    for row, nearest in enumerate(find_nearest(queries, items, k)):
        cosines = items[nearest].astype(np.float64) @ queries[row]
        np.add.at(votes[row], labels[nearest], np.exp((cosines - 1) / temperature))
    return votes
