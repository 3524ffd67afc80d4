"""What any file says of a VQGAN, before its weights are read."""

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
    """A configuration in JSON or YAML. LoadError if the file holds none."""
    import yaml

    with describing(file):
        text = file.read_text("utf-8")
        config = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(config, dict):
            raise LoadError(f"{file} holds a {type(config).__name__}; a configuration is a mapping")
        return config


@contextlib.contextmanager
def describing(where: str | Path) -> Iterator[None]:
    """Turns what a wrong configuration makes its reader raise into a LoadError that names the file."""
    try:
        yield
    except LoadError:
        raise
    except KeyError as error:
        raise LoadError(f"{where} describes no model that can be built: it lacks {error}") from error
    except Exception as error:  # any value can stand in any place of a file
        raise LoadError(f"{where} describes no model that can be built ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A VQGAN in files, its weights not read yet.

    Attributes:
      name: where it came from, for people.
      kind: the format, for people.
      model: options of `vqgan_jax.model.VQGANOptions`; what is absent is as by default.
      read: reads the weights: variables of the module (`params`, and `codebook` of an EMA quantiser) as float32 arrays, and
        a name that tells which they are.
      discriminator: the second player's options and what reads its collections (`params`, `batch_stats`), where the files
        hold one.
      compute: how the model was computed in training.
    """

    name: str
    kind: str
    model: Mapping
    read: Callable[[], tuple[dict, str]]
    discriminator: tuple[Mapping, Callable[[], dict]] | None = None
    compute: Compute = Compute()

    def module(self) -> model_lib.Autoencoder:
        """The model. LoadError if the options describe none that can be built."""
        with describing(self.name):
            return model_lib.build(self.model, self.compute)

    def variables(self, module: model_lib.Autoencoder) -> tuple[dict, str]:
        """The weights, and which they are, for people. LoadError that lists wrong or missing ones with their shapes."""
        with describing(self.name):
            expected = abstract_variables(module)
        variables, name = self.read()
        wanted, found = (
            {f"{kind}/{path}": tuple(x.shape) for kind, part in tree.items() for path, x in flat(part).items()}
            for tree in (expected, variables)
        )
        wrong = [
            f"{path} {list(wanted[path]) if path in wanted else 'absent'} by the configuration, "
            f"{list(found[path]) if path in found else 'absent'} in the weights"
            for path in sorted(wanted.keys() | found.keys())
            if wanted.get(path) != found.get(path)
        ]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise LoadError(
                f"{self.name}: weights and configuration belong to different models: {'; '.join(wrong[:5])}{more}"
            )
        return variables, name


def abstract_variables(module: model_lib.Autoencoder) -> dict:
    """Shapes of a model's variables, without boxes; as NumPy arrays of no memory."""
    side = 2 * module.factor

    def init(key):
        return module.init({"params": key, "dropout": key}, jnp.zeros((1, side, side, 3)))

    found = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), found)
