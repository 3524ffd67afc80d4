"""The interface of drawers, with start pictures by gradient descent for those that cannot invert their rendering."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from train_jax.options import Options
from vqgan_jax.guided import colour

Parameters = Any  # tree of float32 arrays
_FIT_STEPS = 200
_FIT_RATE = 0.1


class Context(NamedTuple):
    """What rendering depends on besides the parameters.

    Attributes:
      size: height and width of the picture.
      weights: the drawer's `weights`.
      temperature: softmax temperature of the step; only for codes.
      key: random key of the step; None: the final picture, which is not random.
    """

    size: tuple[int, int]
    weights: Any = None
    temperature: jax.Array | float = 1.0
    key: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Drawer(Options, abc.ABC):
    """Parameters of a picture, and their rendering. Subclasses are frozen dataclasses, whose fields are options.

    Parameters are a tree of float32 arrays, scaled so that a step of 0.1 in each of them is a sensible one. A drawer is a
    static part of compiled programs. It has no weights, unless it renders by a network.

    Attributes:
      is_scalable: whether the same parameters show the same picture at all sizes.
      regularise: method `(z, context) -> scalar`, a penalty of superfluous detail, whose weight is the option `sparsity`;
        its docstring's first line describes it. None: the drawer has no penalty.
    """

    is_scalable: ClassVar[bool] = False
    regularise: ClassVar[Callable | None] = None

    @property
    def factor(self) -> int:
        """Number that must divide both sides of a picture."""
        return 1

    @property
    def runs(self) -> tuple[str, ...]:
        """Run directories that the options name."""
        return ()

    @property
    def weights(self) -> Any:
        """Weights on the devices; None for drawers without a network."""
        return None

    def without_weights(self) -> "Drawer":
        """Returns the drawer as a key of compiled programs."""
        return self

    @abc.abstractmethod
    def init(self, size: tuple[int, int], seeds: Sequence[int]) -> Parameters:
        """Draws the parameters of a picture for each seed (leading axis n), on the host."""

    def encode(self, size: tuple[int, int], images: Float32[np.ndarray, "n H W 3"], z: Parameters) -> Parameters:
        """Returns parameters whose pictures are near the images; by default fitted from `z` (leading axis n)."""
        return jax.tree.map(np.asarray, _fit(self, size, images, z))

    @abc.abstractmethod
    def render(self, z: Parameters, context: Context) -> Float[Array, "H W c"]:
        """Renders one picture, RGB or RGBA (not premultiplied), nominally in [0, 1]."""

    def project(self, z: Parameters, context: Context) -> Parameters:
        """Moves parameters to the nearest allowed ones, after each step."""
        return z

    def codes(self, z: Parameters, context: Context) -> Int[Array, "h w"] | None:
        """Returns the codes of a VQGAN; None for all other drawers."""
        return None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(drawer: Drawer, size: tuple[int, int], images: Float[Array, "n H W 3"], z: Parameters) -> Parameters:
    """Minimises the squared distance to the images by Adam. Pictures with alpha are compared over black and white."""
    tx, context = optax.adam(optax.cosine_decay_schedule(_FIT_RATE, _FIT_STEPS, 0.1)), Context(size)

    def fit_one(image, z):
        def loss(z):
            x = drawer.render(z, context)
            return sum(jnp.mean((colour.flatten(x, grey) - image) ** 2) for grey in (0.0, 1.0))

        def step(carry, _):
            z, state = carry
            updates, state = tx.update(jax.grad(loss)(z), state)
            return (drawer.project(optax.apply_updates(z, updates), context), state), None

        return jax.lax.scan(step, (z, tx.init(z)), length=_FIT_STEPS)[0][0]

    return jax.vmap(fit_one)(images, z)


def normal(seeds: Sequence[int], shape: tuple[int, ...], deviation: float, stream: int = 0) -> Float32[np.ndarray, "n ..."]:
    """Draws normal numbers for each seed. `stream` tells apart the arrays of a drawer."""
    draws = [np.random.default_rng((seed, stream)).standard_normal(shape, np.float32) for seed in seeds]
    return np.float32(deviation) * np.stack(draws)


def uniform(seeds: Sequence[int], shape: tuple[int, ...], stream: int = 0) -> Float32[np.ndarray, "n ..."]:
    """Draws numbers in [0, 1) for each seed."""
    return np.stack([np.random.default_rng((seed, stream)).random(shape, np.float32) for seed in seeds])
