"""Reading of 8-bit floating-point tensors, which the safetensors library supports only for PyTorch."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from train_jax.errors import LoadError

DTYPES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}  # by their names in the file's header
_SCALES = re.compile(r"(weight_scale(_inv)?|input_scale|scale_(weight|input)|scaled_fp8)$")


def read(path: Path, name: str) -> np.ndarray:
    """Reads a tensor of a safetensors file: 8 bytes of header length, the header in JSON, the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + length + start)
        return np.frombuffer(file.read(end - start), DTYPES[entry["dtype"]]).reshape(entry["shape"])


def refuse_scaled(path: Path, names: Iterable[str]) -> None:
    """Raises LoadError for 8-bit tensors with separate scales, whose meaning differs between quantisation formats."""
    scales = sorted(name for name in names if _SCALES.search(name))
    if scales:
        raise LoadError(
            f"{path} holds 8-bit floats with separate scales ({scales[0]} and {len(scales) - 1} more), which are not "
            "supported: use the weights in bfloat16 or float32"
        )
