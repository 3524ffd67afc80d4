"""Losses of the picture that a user writes: functions of a module, named `module:function:weight`, or callables.

    def darkness(images):  # [n, H, W, 3] in [0, 1]
        return images.mean((1, 2, 3))  # [n]
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_jax.errors import ConfigError, in_float32

_NAME = r"([^\W\d][\w.]*:[^\W\d]\w*)(?::([^:]+))?"  # module:function, or module:function:weight
_ALLOWED = "it must be 'module:function', 'module:function:weight', a function, or a pair (function, weight)"


@dataclasses.dataclass(frozen=True)
class CustomLoss:
    """A loss with its weight. `str` gives the text from which `parse` makes it again, if it is named.

    Attributes:
      name: "module:function".
      function: the loss, if it was given as a callable; None: it is imported by its name.
    """

    name: str
    weight: float = 1.0
    function: Callable | None = None

    def __str__(self) -> str:
        return f"{self.name}:{self.weight!r}"

    def load(self) -> Callable:
        """Returns the function. Raises ConfigError if its module has none of this name."""
        if self.function is not None:
            return self.function
        module, _, name = self.name.partition(":")
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise ConfigError(f"losses = {self.name}: the module {module} has no function {name}")
        return function

    def hash_source(self) -> str:
        """Hashes the source by SHA-256, without importing the module: of a named function its whole module.

        A function calls others of its module. A callable comes from a script or notebook whose other lines change, so that
        its own lines count. Raises ConfigError for functions without a source, and modules that are not found.
        """
        if self.function is not None:
            try:
                return hashlib.sha256(inspect.getsource(inspect.unwrap(self.function)).encode()).hexdigest()
            except (OSError, TypeError) as error:
                raise ConfigError(f"losses: {self.name} has no source to be hashed; define it by def in a file") from error
        module = self.name.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"losses = {self.name}: {error}") from error
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise ConfigError(
                f"losses = {self.name}: there is no module {module} in Python; it must be in the working folder or installed"
            )
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def parse(value: Any) -> CustomLoss:
    """Parses `module:function`, `module:function:weight`, a callable, or a pair of a callable and a weight.

    Raises ConfigError for all else, and for a weight that is 0 or not finite.
    """
    if isinstance(value, CustomLoss):
        return value
    function, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    match = re.fullmatch(_NAME, value) if isinstance(value, str) else None
    if match:
        name, function, weight = match[1], None, _parse_number(match[2] or "1")
    elif callable(function):
        module, function_name = (getattr(function, key, type(function).__name__) for key in ("__module__", "__qualname__"))
        name = f"{module}:{function_name}"
    else:
        weight = None
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"losses: {value!r} is not a loss; {_ALLOWED}")
    if weight == 0 or not in_float32(weight):
        raise ConfigError(f"losses: {value!r} has a weight without effect, or one that is not finite; leave it out")
    return CustomLoss(name, float(weight), function)


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
