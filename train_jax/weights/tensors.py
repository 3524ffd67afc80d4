"""Weight files as mappings from names to arrays: safetensors, PyTorch's zip archives, NumPy's npz. Needs no PyTorch.

A PyTorch file is a pickle. It is read here by an unpickler that knows a dozen harmless names (tensors, ordered dicts, the
modules of a TorchScript archive as plain bags of attributes) and refuses every other one, so that no code in it can run.
"""

import collections
import dataclasses
import functools
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from train_jax.errors import LoadError
from train_jax.weights import float8

_STORAGES = {
    "FloatStorage": np.dtype("float32"),
    "DoubleStorage": np.dtype("float64"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file: its shape, and how to read it."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


def open_tensors(path: Path, classes: Collection[tuple[str, str]] = ()) -> Mapping[str, Tensor]:
    """The tensors in a weight file, by name; none is read yet.

    Args:
      classes: (module, name) of classes of which a PyTorch file may hold objects. They are not imported: of such an object
        the attributes are read. Of any other class, nothing is.

    Raises LoadError for a file that is damaged, of another kind, or holds what only a program could unpack.
    """
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        if path.suffix == ".npz":
            return _npz(path)
        return _flat(_torch(path, classes))
    except (LoadError, FileNotFoundError):
        raise
    except Exception as error:  # zip, pickle and safetensors raise classes of their own, of every kind
        raise LoadError(f"{path} cannot be read as weights ({type(error).__name__}: {error})") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        eight_bits = {name for name in shapes if file.get_slice(name).get_dtype() in float8.DTYPES}
    if eight_bits:
        float8.refuse_scaled(path, shapes)

    def load(name: str) -> np.ndarray:
        if name in eight_bits:
            return float8.read(path, name)
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return {name: Tensor(shape, functools.partial(load, name)) for name, shape in shapes.items()}


def _npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read_header[version](file)
                if dtype.hasobject:
                    raise LoadError(f"{path}: {member} holds Python objects, which are not read")
            name = member.removesuffix(".npy")
            found[name] = Tensor(tuple(shape), functools.partial(_npz_member, path, name))
    return found


def _npz_member(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        array = file[name]
    # NumPy writes bfloat16 as two raw bytes.
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" and array.dtype.itemsize == 2 else array


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


class _Bag:
    """A module of a TorchScript archive, or of a class that was named: its attributes, and no code."""

    attributes: Any = None

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        self.attributes = state


def _torch(path: Path, classes: Collection[tuple[str, str]] = ()):
    """What was saved by `torch.save` or `torch.jit.save`, tensors unread."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise LoadError(
                f"{path} is no zip archive: PyTorch before 1.6 wrote another format, which is not read here. Save it "
                "again with a newer PyTorch, as safetensors"
            )
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise LoadError(f"{path} is no PyTorch file: it holds {', '.join(archive.namelist()[:5])}")
        folder = pickles[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise LoadError(f"{path} was written on a big-endian machine, which is not supported")
        with archive.open(pickles[0]) as file:
            return _Unpickler(file, path, folder, classes).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, path: Path, folder: str, classes: Collection[tuple[str, str]]):
        super().__init__(file)
        self._path, self._folder, self._classes = path, folder, classes

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return self._tensor if name == "_rebuild_tensor_v2" else (lambda data, *_: data)
        if module.startswith("__torch__") or (module, name) in self._classes:
            return _Bag
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _: value
        if module == "torch.jit._pickle" and name.startswith("build_") and name.endswith("list"):
            return lambda values: values
        raise LoadError(
            f"{self._path} holds {module}.{name}, which is no tensor: opening it could run a program, so it is refused. "
            "If you trust the file, load it with PyTorch and save its state dict as safetensors"
        )

    def persistent_load(self, saved) -> _Storage:
        kind, dtype, key, *_ = saved
        if kind != "storage" or not isinstance(dtype, np.dtype) or not str(key).isdigit():
            raise LoadError(f"{self._path} refers to {saved!r}, which is no storage of numbers")
        return _Storage(str(key), dtype)

    def _tensor(self, storage: _Storage, offset: int, shape, strides, *_) -> Tensor:
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))

        def load() -> np.ndarray:
            with zipfile.ZipFile(self._path) as archive:
                data = np.frombuffer(archive.read(f"{self._folder}data/{storage.key}"), storage.dtype)
            last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
            if min((offset, *strides), default=0) < 0 or (0 not in shape and last >= len(data)):
                raise LoadError(f"{self._path}: a tensor of shape {list(shape)} lies outside its storage")
            steps = [step * data.itemsize for step in strides]
            return np.lib.stride_tricks.as_strided(data[offset:], shape, steps).copy()

        return Tensor(shape, load)


def _flat(saved) -> dict[str, Tensor]:
    """Tensors by dotted name, whatever they are nested in; what is not one (numbers, names of epochs) is left out."""
    found: dict[str, Tensor] = {}

    def visit(prefix: str, value) -> None:
        if isinstance(value, Tensor):
            found[prefix] = value
        elif isinstance(value, _Bag):
            visit(prefix, value.attributes)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), item)

    visit("", saved)
    return found
