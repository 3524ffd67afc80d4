"""Distances between two image collections in a feature space: Fréchet distance and CMMD."""

import numpy as np
from jaxtyping import Float

_TILE = 2048  # rows of the kernel matrix that are computed at a time
_SIGMA = 10.0  # bandwidth of CMMD's Gaussian kernel
_SCALE = 1000.0  # factor of CMMD values


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Computes the Fréchet distance between Gaussians fitted to the features (arXiv 1706.08500, equation 6).

    The distance is |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64. tr (C_a C_b)^(1/2) is computed as
    tr (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is numerically stable also for fewer images than features.

    Raises ValueError for fewer than two images.
    """
    a, b = (_validate_features(x) for x in (a, b))
    means, covariances = [x.mean(axis=0) for x in (a, b)], [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace_sqrt = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    covariance_term = sum(np.trace(c) for c in covariances) - 2 * trace_sqrt
    return float(max(np.sum((means[0] - means[1]) ** 2) + covariance_term, 0.0))


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Computes CMMD (arXiv 2401.09603, section 4): 1,000 times the squared maximum mean discrepancy.

    The features are CLIP features of unit norm. The kernel is Gaussian with bandwidth 10, computed in tiles. Means are over
    all pairs, including pairs of an image with itself, as in the authors' code.

    Raises ValueError for fewer than two images.
    """
    a, b = (_validate_features(x) for x in (a, b))
    return float(_SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b)))


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    squares = np.sum(b**2, axis=1)
    total = 0.0
    for start in range(0, len(a), _TILE):
        tile = a[start : start + _TILE]
        distances = np.sum(tile**2, axis=1)[:, None] + squares - 2 * tile @ b.T
        total += np.exp(-np.maximum(distances, 0) / (2 * _SIGMA**2)).sum()
    return total / (len(a) * len(b))


def _validate_features(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be [images, features] of at least two images, not {list(x.shape)}")
    return x
