"""A VQGAN checkpoint of any format: the model's options, and a function that reads the weights."""

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
from train_jax.weights.layout import flat
from vqgan_jax import model as model_lib


def read_config(file: Path) -> dict:
    """Reads a configuration in JSON or YAML. Raises LoadError if the file holds none."""
    import yaml

    with describing(file):
        text = file.read_text("utf-8")
        config = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(config, dict):
            raise LoadError(f"{file} holds a {type(config).__name__}; a configuration is a mapping")
        return config


@contextlib.contextmanager
def describing(where: str | Path) -> Iterator[None]:
    """Turns errors in reading a configuration into a LoadError that names the file."""
    try:
        yield
    except LoadError:
        raise
    except KeyError as error:
        raise LoadError(f"{where} describes no model that can be built: it lacks {error}") from error
    except Exception as error:  # a file can hold any value for any option
        raise LoadError(f"{where} describes no model that can be built ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A VQGAN checkpoint whose weights are not read yet.

    Attributes:
      name: where it was loaded from, for messages.
      format: the name of the format, for messages.
      model: options of `vqgan_jax.model.VQGANOptions`; absent ones have their defaults.
      read: reads the weights: variables of the module (`params`, and `codebook` of an EMA quantiser) as float32 arrays, and
        a name that identifies them.
      discriminator: the discriminator's options and a function that reads its collections (`params`, `batch_stats`); None
        if the files hold no discriminator.
      compute: precision of the training.
    """

    name: str
    format: str
    model: Mapping
    read: Callable[[], tuple[dict, str]]
    discriminator: tuple[Mapping, Callable[[], dict]] | None = None
    compute: Compute = Compute()

    def module(self) -> model_lib.Autoencoder:
        """Builds the model. Raises LoadError for wrong options."""
        with describing(self.name):
            return model_lib.build(self.model, self.compute)

    def variables(self, module: model_lib.Autoencoder) -> tuple[dict, str]:
        """Reads the weights and their name. Raises LoadError that lists wrong and missing weights with their shapes."""
        with describing(self.name):
            abstract = abstract_variables(module)
        variables, name = self.read()
        expected, actual = (
            {f"{kind}/{path}": tuple(x.shape) for kind, part in tree.items() for path, x in flat(part).items()}
            for tree in (abstract, variables)
        )
        wrong = [
            f"{path} {list(expected[path]) if path in expected else 'absent'} by the configuration, "
            f"{list(actual[path]) if path in actual else 'absent'} in the weights"
            for path in sorted(expected.keys() | actual.keys())
            if expected.get(path) != actual.get(path)
        ]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise LoadError(
                f"{self.name}: weights and configuration belong to different models: {'; '.join(wrong[:5])}{more}"
            )
        return variables, name


def abstract_variables(module: model_lib.Autoencoder) -> dict:
    """Returns the shapes of a model's unboxed variables, as NumPy arrays that take no memory."""
    side = 2 * module.factor

    def init(key):
        return module.init({"params": key, "dropout": key}, jnp.zeros((1, side, side, 3)))

    abstract = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)
