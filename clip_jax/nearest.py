"""Nearest-neighbour search by inner product: exact on the device, or approximate with faiss.

Approximate search uses an inverted file (IVF): the rows are clustered into about 4 sqrt(n) lists, and a query searches
only the few nearest lists. The lists propose candidates; the scores of candidates are exact.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

NPROBE = 32  # number of lists searched per query
_OVERSAMPLE = 4  # candidates per requested row, since the lists store float16 rows
_ROWS_PER_LIST = 64  # clustering samples per list; faiss warns below 39
_CHUNK = 1 << 16  # rows added to the index at a time


@functools.partial(jax.jit, static_argnums=2)
def search_exact(
    embeddings: Float32[Array, "n dim"], query: Float32[Array, "dim"], k: int
) -> tuple[Float32[Array, "k"], Int32[Array, "k"]]:
    """Returns the `k` <= n largest inner products with `query`, largest first, and their row indices."""
    # The default precision of some devices would change the order of close neighbours.
    scores = jnp.matmul(embeddings, query, precision=jax.lax.Precision.HIGHEST)
    largest, rows = jax.lax.top_k(scores, k)
    return largest, rows


def is_faiss_installed() -> bool:
    """Checks whether faiss is installed."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def write_ivf_index(file: Path, embeddings: Float[np.ndarray, "n dim"]) -> None:
    """Builds an IVF index of the rows, stored in float16, and writes it to `file`. Needs faiss."""
    import faiss

    count, dim = embeddings.shape
    lists = max(1, min(round(4 * math.sqrt(count)), count // _ROWS_PER_LIST))
    index = faiss.index_factory(dim, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(count, min(count, lists * _ROWS_PER_LIST), replace=False)
    index.train(embeddings[np.sort(sample)].astype(np.float32))
    for start in range(0, count, _CHUNK):
        index.add(embeddings[start : start + _CHUNK].astype(np.float32))
    faiss.write_index(index, str(file))


class IVFIndex:
    """IVF index, read from a file of `write_ivf_index`. Raises faiss's RuntimeError if the file is damaged."""

    def __init__(self, file: Path):
        import faiss

        self._index = faiss.read_index(str(file))
        self._index.nprobe = NPROBE

    def search(
        self, embeddings: Float[np.ndarray, "n dim"], query: Float32[np.ndarray, "dim"], k: int
    ) -> tuple[Float32[np.ndarray, "hits"], Int[np.ndarray, "hits"]]:
        """Returns the largest inner products and row indices within the nearest lists.

        The result has fewer than `k` hits if the lists hold fewer rows.
        """
        _, rows = self._index.search(query[None], min(_OVERSAMPLE * k, len(embeddings)))
        rows = rows[0][rows[0] >= 0]
        scores = embeddings[rows].astype(np.float32) @ query
        best = np.argsort(-scores, kind="stable")[:k]
        return scores[best], rows[best]
