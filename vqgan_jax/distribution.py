"""How far apart two collections of images are, by the features of each: Fréchet distance and CMMD."""

import numpy as np
from jaxtyping import Float

_TILE = 2048  # rows of a kernel matrix that are held at once
_SIGMA = 10.0  # of CMMD's Gaussian
_SCALE = 1000.0  # of CMMD's results


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of Gaussians fitted to the features (arXiv 1706.08500, eq. 6).

    In float64, through the symmetric product C_a^(1/2) C_b C_a^(1/2), whose root's trace is the same and which stays sound
    where there are fewer images than features. Raises ValueError for fewer than two images.
    """
    a, b = (_features(x) for x in (a, b))
    means, covariances = [x.mean(axis=0) for x in (a, b)], [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    spread = sum(np.trace(c) for c in covariances) - 2 * shared
    return float(max(np.sum((means[0] - means[1]) ** 2) + spread, 0.0))


def cmmd(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """1,000 times the squared maximum mean discrepancy of unit features of a CLIP (arXiv 2401.09603, section 4).

    Gaussian kernel of bandwidth 10, means over all pairs (as in the authors' code, those of an image with itself
    included), computed in tiles. Raises ValueError for fewer than two images.
    """
    a, b = (_features(x) for x in (a, b))
    return float(_SCALE * (_mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b)))


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    squares = np.sum(b**2, axis=1)
    total = 0.0
    for start in range(0, len(a), _TILE):
        part = a[start : start + _TILE]
        distances = np.sum(part**2, axis=1)[:, None] + squares - 2 * part @ b.T
        total += np.exp(-np.maximum(distances, 0) / (2 * _SIGMA**2)).sum()
    return total / (len(a) * len(b))


def _features(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be [images, numbers] of at least two images, not {list(x.shape)}")
    return x
