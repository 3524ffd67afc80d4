"""Options for the computation of a model: precision, rematerialisation, scan. They do not affect its weights."""

import dataclasses
from typing import Any

from jax.typing import DTypeLike

from nn_jax.layers import DTYPES
from nn_jax.transformer import REMAT
from train_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Compute(Options):
    """Computation options of any model, `config.compute`."""

    dtype: str = option(
        "float32", "dtype of activations and matrix products; parameters and accumulation stay float32", choices=DTYPES
    )
    remat: str = option(
        "none",
        "rematerialisation of each block: full recomputes everything, dots all but matrix products and convolutions",
        choices=REMAT,
    )

    @property
    def array_dtype(self) -> DTypeLike:
        """The dtype of activations as a NumPy dtype."""
        return DTYPES[self.dtype]


@dataclasses.dataclass(frozen=True)
class TransformerCompute(Compute):
    """Computation options of a model with transformer blocks."""

    scan: bool = option(True, "scan over the blocks; False: unrolled blocks, slower to compile, faster on a CPU")

    @property
    def transformer(self) -> dict[str, Any]:
        """Keyword arguments of `nn_jax.transformer.Transformer`."""
        return {"scan": self.scan, "remat": self.remat, "dtype": self.array_dtype}
