"""VQGAN checkpoints in a common form: model options, and a function that reads the weights."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.compute import Compute
from train_jax.errors import LoadError
from train_jax.weights.layout import flatten
from vqgan_jax import model as model_lib


def read_config(file: Path) -> dict:
    """Reads a configuration from a JSON or YAML file. Raises LoadError if the file contains no mapping."""
    import yaml

    with convert_errors(file):
        text = file.read_text("utf-8")
        config = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(config, dict):
            raise LoadError(f"{file} holds a {type(config).__name__}; a configuration is a mapping")
        return config


@contextlib.contextmanager
def convert_errors(source: str | Path) -> Iterator[None]:
    """Converts exceptions of the block to a LoadError that names the configuration's source."""
    try:
        yield
    except LoadError:
        raise
    except KeyError as error:
        raise LoadError(f"{source} describes no model that can be built: it lacks {error}") from error
    except Exception as error:  # configuration values can have any type
        raise LoadError(f"{source} describes no model that can be built ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A VQGAN checkpoint whose weights are not read yet.

    Attributes:
      name: source of the weights, for messages.
      format: name of the format, for messages.
      model: options of `vqgan_jax.model.VQGANOptions`; absent options have default values.
      read: function that reads the module's variables (`params`, and `codebook` of an EMA quantiser) as float32 arrays;
        returns the variables and a name that identifies the weights.
      discriminator: options of the discriminator and a function that reads its collections (`params`, `batch_stats`); None
        if the files contain no discriminator.
      compute: precision used in training.
    """

    name: str
    format: str
    model: Mapping
    read: Callable[[], tuple[dict, str]]
    discriminator: tuple[Mapping, Callable[[], dict]] | None = None
    compute: Compute = Compute()

    def module(self) -> model_lib.Autoencoder:
        """Builds the module. Raises LoadError for invalid options."""
        with convert_errors(self.name):
            return model_lib.build(self.model, self.compute)

    def variables(self, module: model_lib.Autoencoder) -> tuple[dict, str]:
        """Reads the weights and their name. Raises LoadError, with names and shapes, for missing and mismatched weights."""
        with convert_errors(self.name):
            abstract = abstract_variables(module)
        variables, name = self.read()
        check_shapes(abstract, variables, self.name)
        return variables, name


def check_shapes(abstract: Mapping, variables: Mapping, name: str) -> None:
    """Raises LoadError, with names and shapes, unless variables of the source `name` have the shapes of `abstract`."""
    expected, actual = (
        {f"{kind}/{path}": tuple(x.shape) for kind, part in tree.items() for path, x in flatten(part).items()}
        for tree in (abstract, variables)
    )
    mismatches = [
        f"{path} {list(expected[path]) if path in expected else 'absent'} by the configuration, "
        f"{list(actual[path]) if path in actual else 'absent'} in the weights"
        for path in sorted(expected.keys() | actual.keys())
        if expected.get(path) != actual.get(path)
    ]
    if mismatches:
        more = f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else ""
        raise LoadError(f"{name}: weights and configuration belong to different models: {'; '.join(mismatches[:5])}{more}")


def abstract_variables(module: model_lib.Autoencoder, channels: int = 3, method: str = "__call__") -> dict:
    """Returns placeholders of a model's unboxed variables: NumPy arrays with shape and dtype that need no memory.

    Args:
      channels: number of channels of images.
      method: method whose variables are returned.
    """
    side = 2 * module.factor

    def init(key):
        return module.init({"params": key, "dropout": key}, jnp.zeros((1, side, side, channels)), method=method)

    abstract = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)
