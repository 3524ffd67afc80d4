"""The rows of a matrix that are nearest to a query: exactly, on the device; or, among millions, approximately by faiss.

The approximate form (an inverted file: the rows in about 4 sqrt(n) clusters, of which a query looks into a few) only
chooses candidates; their scores are those of the exact form.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

PROBES = 32  # clusters that a query looks into
_SPARE = 4  # candidates for each row asked for: clusters hold rounded rows
_ROWS_A_CLUSTER = 64  # to find the clusters' centres with; faiss warns below 39
_CHUNK = 1 << 16


@functools.partial(jax.jit, static_argnums=2)
def exact(
    embeddings: Float32[Array, "n dim"], query: Float32[Array, "dim"], top: int
) -> tuple[Float32[Array, "top"], Int32[Array, "top"]]:
    """The `top` largest products with `query`, largest first, and their rows. `top` is at most n."""
    # Devices that multiply in lower precision unless asked not to would shuffle near neighbours.
    scores = jnp.matmul(embeddings, query, precision=jax.lax.Precision.HIGHEST)
    largest, rows = jax.lax.top_k(scores, top)
    return largest, rows


def installed() -> bool:
    """Whether faiss is here."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def write_clusters(file: Path, embeddings: Float[np.ndarray, "n dim"]) -> None:
    """Sorts the rows into clusters and writes these, rounded to float16, to `file`. Needs faiss."""
    import faiss

    count, dim = embeddings.shape
    clusters = max(1, min(round(4 * math.sqrt(count)), count // _ROWS_A_CLUSTER))
    index = faiss.index_factory(dim, f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).choice(count, min(count, clusters * _ROWS_A_CLUSTER), replace=False)
    index.train(embeddings[np.sort(chosen)].astype(np.float32))
    for start in range(0, count, _CHUNK):
        index.add(embeddings[start : start + _CHUNK].astype(np.float32))
    faiss.write_index(index, str(file))


class Clusters:
    """A file of `write_clusters`, opened. Raises RuntimeError (faiss's own) if it is damaged."""

    def __init__(self, file: Path):
        import faiss

        self._index = faiss.read_index(str(file))
        self._index.nprobe = PROBES

    def nearest(
        self, embeddings: Float[np.ndarray, "n dim"], query: Float32[np.ndarray, "dim"], top: int
    ) -> tuple[Float32[np.ndarray, "found"], Int[np.ndarray, "found"]]:
        """As `exact`, among the rows of the clusters nearest to `query`; fewer than `top` if these hold fewer."""
        _, rows = self._index.search(query[None], min(_SPARE * top, len(embeddings)))
        rows = rows[0][rows[0] >= 0]
        scores = embeddings[rows].astype(np.float32) @ query
        best = np.argsort(-scores, kind="stable")[:top]
        return scores[best], rows[best]
