"""What any file says of a VQGAN, before its weights are read."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.errors import ConfigError, LoadError
from train_jax.weights.layout import flat
from vqgan_jax import model as model_lib


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A VQGAN in files, its weights not read yet.

    Attributes:
      name: where it came from, for people.
      kind: the format, for people.
      model: options, as in `vqgan_jax.model.defaults`; what is absent is as there.
      read: reads the weights: variables of the module (`params`, and `codebook` of an EMA quantiser) as float32 arrays, and
        a name that tells which they are.
      discriminator: the second player's options and what reads its collections (`params`, `batch_stats`), where the files
        hold one.
    """

    name: str
    kind: str
    model: Mapping
    read: Callable[[], tuple[dict, str]]
    discriminator: tuple[Mapping, Callable[[], dict]] | None = None

    def module(self) -> model_lib.Autoencoder:
        """The model. LoadError if the options describe none that can be built."""
        options = model_lib.defaults()
        try:
            options.update({name: dict(x) if isinstance(x, Mapping) else x for name, x in self.model.items()})
            return model_lib.build(options)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise LoadError(f"{self.name} describes no VQGAN that can be built: {error}") from error

    def variables(self, module: model_lib.Autoencoder) -> tuple[dict, str]:
        """The weights, and which they are, for people. LoadError that lists wrong or missing ones with their shapes."""
        variables, name = self.read()
        wanted, found = (
            {f"{kind}/{path}": tuple(x.shape) for kind, part in tree.items() for path, x in flat(part).items()}
            for tree in (abstract_variables(module), variables)
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
