"""Reads arrays of Flax's msgpack files."""

from pathlib import Path

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from train_jax.errors import LoadError


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name, such as `encoder.conv_in.kernel`. Raises LoadError for other content."""
    try:
        tree = msgpack_restore(file.read_bytes())
        return {".".join(name): np.asarray(x) for name, x in flatten_dict(tree).items()}
    except Exception as error:  # msgpack's exceptions have no common base class
        raise LoadError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
