"""Reading of weight files as mappings from names to arrays: safetensors, PyTorch's zip archives, NumPy's npz.

Needs no PyTorch. A PyTorch file is a pickle, which is read as plain values (`pickles`): tensors become arrays; for all other
objects in the file (modules, callbacks of a trainer, options) only attributes are read and no code runs.
"""

import contextlib
import dataclasses
import functools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from train_jax import paths
from train_jax.errors import LoadError
from train_jax.paths import AnyPath
from train_jax.weights import float8
from train_jax.weights.pickles import Global, Interpreter, Record

_MAX_NAME_LENGTH = 1000  # characters of a tensor's name
_MAX_VALUES = 200_000  # values of a file; nested shared references could expand to exponentially many
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
    """Array in a file that is read on demand.

    Attributes:
      shape: shape of the array.
      load: function that reads the array.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.load(), dtype)


@contextlib.contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Converts all errors of reading a damaged file to LoadError; usable as a decorator."""
    try:
        yield
    except (LoadError, FileNotFoundError):
        raise
    except Exception as error:  # zip, zlib, NumPy and safetensors raise various classes
        raise LoadError(f"{path} cannot be read as weights ({type(error).__name__}: {error})") from error


def open_tensors(path: AnyPath) -> Mapping[str, Tensor]:
    """Opens a weight file and returns its tensors by name, without reading the arrays.

    Names of a PyTorch file are the keys of dicts and the attributes of objects on the path to a tensor, joined by dots; of a
    list or tuple, they begin with an index.
    Raises LoadError for a damaged file or another format; reading a tensor may also raise LoadError.
    """
    path = paths.local(path)
    with _convert_errors(path):
        if path.suffix == ".safetensors":
            return _open_safetensors(path)
        if path.suffix == ".npz":
            return _open_npz(path)
        return _flatten(_open_torch(path), path)


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    """Opens a safetensors file."""
    with safetensors.safe_open(path, "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        eight_bits = {name for name in shapes if file.get_slice(name).get_dtype() in float8.DTYPES}
    if eight_bits:
        float8.refuse_scaled(path, shapes)

    @_convert_errors(path)
    def load(name: str) -> np.ndarray:
        if name in eight_bits:
            return float8.read(path, name)
        with safetensors.safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    return {name: Tensor(shape, functools.partial(load, name)) for name, shape in shapes.items()}


def _open_npz(path: Path) -> dict[str, Tensor]:
    """Opens an npz file."""
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read_header[version](file)
                if dtype.hasobject:
                    raise LoadError(f"{path}: {member} holds Python objects, which are not read")
            name = member.removesuffix(".npy")
            tensors[name] = Tensor(tuple(shape), functools.partial(_read_npz_member, path, name))
    return tensors


def _read_npz_member(path: Path, name: str) -> np.ndarray:
    """Reads an array of an npz file."""
    with _convert_errors(path), np.load(path, allow_pickle=False) as file:
        array = file[name]
    # NumPy writes bfloat16 as two raw bytes.
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" and array.dtype.itemsize == 2 else array


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Reference to the storage of a tensor in a PyTorch file."""

    key: str
    kind: str


def _open_torch(path: Path):
    """Reads a file of `torch.save` or `torch.jit.save` as plain values with unread tensors."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise LoadError(
                f"{path} is not a zip archive: PyTorch before 1.6 wrote another format, which is not supported. Save it "
                "again with a newer PyTorch, as safetensors"
            )
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise LoadError(f"{path} is not a PyTorch file: it holds {', '.join(archive.namelist()[:5])}")
        folder = pickles[0].removesuffix("data.pkl")
        order = folder + "byteorder"
        if order in archive.namelist() and _read_member(archive, order) != b"little":
            raise LoadError(f"{path} was written on a big-endian machine, which is not supported")
        data = _read_member(archive, pickles[0])
    calls = {
        "collections.OrderedDict": lambda pairs=(): {key: value for key, value in pairs if isinstance(key, str)},
        "torch._utils._rebuild_tensor_v2": functools.partial(_make_tensor, path, folder),
        "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, _, __, dtype, *___: _make_tensor(
            path, folder, _Storage(storage.key, dtype.name.removeprefix("torch.")), offset, shape, strides
        ),
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": lambda call, _, arguments, __: calls[call.name](*arguments),
        "torch.jit._pickle.restore_type_tag": lambda value, _: value,
        **{
            f"torch.jit._pickle.build_{kind}list": lambda values: values for kind in ("int", "double", "bool", "tensor")
        },
    }
    try:
        return Interpreter(calls, _parse_storage).load(data)
    except LoadError as error:
        raise LoadError(f"{path} holds {error}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Reads an uncompressed member of a zip archive."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # prevents decompression bombs
        raise LoadError(f"{archive.filename}: {name} is compressed, which PyTorch does not do")
    return archive.read(name)


def _parse_storage(saved) -> _Storage:
    """Parses the persistent id of a storage."""
    kind, dtype, key, *_ = saved
    if kind != "storage" or not isinstance(dtype, Global) or not (isinstance(key, str | int) and str(key).isdigit()):
        raise LoadError("a persistent id that is not a storage of numbers")
    return _Storage(str(key), dtype.name.removeprefix("torch."))


def _make_tensor(path: Path, folder: str, storage: _Storage, offset: int, shape, strides, *_) -> Tensor:
    """Makes the unread tensor of a view into a storage."""
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))

    @_convert_errors(path)
    def load() -> np.ndarray:
        if storage.kind not in _STORAGES:
            raise LoadError(f"{path} holds numbers of type {storage.kind}; supported types are {', '.join(_STORAGES)}")
        with zipfile.ZipFile(path) as archive:
            data = np.frombuffer(_read_member(archive, f"{folder}data/{storage.key}"), _STORAGES[storage.kind])
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min((offset, *strides, *shape), default=0) < 0 or (0 not in shape and last >= len(data)):
            raise LoadError(f"{path}: a tensor of shape {list(shape)} lies outside its storage")
        if math.prod(shape) > len(data):
            raise LoadError(f"{path}: a tensor of shape {list(shape)} has more numbers than its storage")
        steps = [step * data.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(data[offset:], shape, steps).copy()

    return Tensor(shape, load)


def _flatten(saved, path: Path) -> dict[str, Tensor]:
    """Returns the tensors in nested values by dotted name; ignores values of other types."""
    tensors: dict[str, Tensor] = {}
    visited = 0
    ancestors: set[int] = set()  # to detect cyclic references

    def visit(prefix: str, value) -> None:
        nonlocal visited
        visited += 1
        if visited > _MAX_VALUES:
            raise LoadError(f"{path} holds more than {_MAX_VALUES:,} values: it is not a weight file")
        if len(prefix) > _MAX_NAME_LENGTH:
            raise LoadError(f"{path} holds names of more than {_MAX_NAME_LENGTH:,} characters, such as {prefix[:60]}…")
        if isinstance(value, Tensor):
            tensors[prefix] = value
        elif isinstance(value, Record | Mapping) and id(value) not in ancestors:
            ancestors.add(id(value))
            if isinstance(value, Record):
                visit(prefix, value.state)
            else:
                for key, item in value.items():
                    visit(f"{prefix}.{key}" if prefix else str(key), item)
            ancestors.remove(id(value))

    visit("", dict(enumerate(saved)) if isinstance(saved, list | tuple) else saved)
    return tensors
