"""Options for the computation of a model: precision, rematerialisation, scan. They do not affect its weights."""

import dataclasses
import re
from typing import Any

import jax
from jax.typing import DTypeLike

from nn_jax.layers import DTYPES
from nn_jax.transformer import REMAT
from train_jax.options import Options, option

INFERENCE_DTYPES = ("auto", *DTYPES)


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

    float8: bool = option(
        False,
        "matrix products of the blocks in float8 (8-bit floating point), for NVIDIA GPUs from Hopper on; slower elsewhere",
    )
    scan: bool = option(True, "scan over the blocks; False: unrolled blocks, slower to compile, faster on a CPU")

    @property
    def blocks(self) -> dict[str, Any]:
        """Keyword arguments of `nn_jax.transformer.Transformer`, without the dtype."""
        return {"scan": self.scan, "remat": self.remat, "float8": self.float8}

    @property
    def transformer(self) -> dict[str, Any]:
        """Keyword arguments of `nn_jax.transformer.Transformer`."""
        return self.blocks | {"dtype": self.array_dtype}


def inference_dtype(dtype: str) -> str:
    """Returns the dtype in which to compute: "auto" is bfloat16 on accelerators that multiply it, and float32 elsewhere.

    These are TPUs, and NVIDIA GPUs of compute capability 8.0 (A100) and above. Raises ValueError for an unknown dtype.
    """
    if dtype not in INFERENCE_DTYPES:
        raise ValueError(f"dtype = {dtype!r} must be one of {', '.join(INFERENCE_DTYPES)}")
    if dtype != "auto":
        return dtype
    device = jax.local_devices()[0]
    capability = re.match(r"(\d+)\.\d+$", str(getattr(device, "compute_capability", "")))  # such as "8.0"; AMD's: "gfx90a"
    has_units = device.platform == "tpu" or (device.platform == "gpu" and capability and int(capability[1]) >= 8)
    return "bfloat16" if has_units else "float32"
