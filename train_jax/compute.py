"""Options of how a model is computed: they change neither its weights nor their meaning."""

import dataclasses
from typing import Any

from jax.typing import DTypeLike

from nn_jax.layers import DTYPES
from nn_jax.transformer import REMAT
from train_jax.options import Options, option


@dataclasses.dataclass(frozen=True)
class Compute(Options):
    """The options of any model, `config.compute`."""

    dtype: str = option("float32", "of activations and products; parameters and sums stay float32", choices=DTYPES)

    @property
    def array_dtype(self) -> DTypeLike:
        return DTYPES[self.dtype]


@dataclasses.dataclass(frozen=True)
class TransformerCompute(Compute):
    """The options of a model made of transformer blocks."""

    remat: str = option(
        "none",
        "what of each block the backward pass computes again: all (full), all but matrix products (dots)",
        choices=REMAT,
    )
    scan: bool = option(True, "blocks are one compiled loop; False: unrolled, slower to compile, faster on a CPU")

    @property
    def transformer(self) -> dict[str, Any]:
        """Attributes of `nn_jax.transformer.Transformer`."""
        return {"scan": self.scan, "remat": self.remat, "dtype": self.array_dtype}
