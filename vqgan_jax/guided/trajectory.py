"""The trajectory of a painting: one compiled scan over the steps of the optimiser, for one painting or many at once.

    state = begin(optimizer, first)
    state, losses = programs.compiled(length, …)(variables, problem, state)
    images, codes, latents = programs.picture(variables, problem, state)

Everything that has a leading axis n has it for the n paintings. What a step draws belongs to (seed, step, cut): it is the
same whatever is painted beside it, on however many devices, in micro-batches of whatever size, and after a resumption.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vqgan_jax.guided import augment, cutouts, latents, losses
from vqgan_jax.model import Autoencoder

TERMS = ("init_weight", "init_pixels", "smoothness", "saturation", "symmetry", "edge", "palette", "aesthetic")


class Eye(NamedTuple):
    """What is static of a CLIP."""

    module: nn.Module
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Structure(NamedTuple):
    """What a program is made for; everything else may change without another one.

    Attributes:
      size: height and width in pixels.
      terms: those of TERMS that any of the paintings weighs.
      micro: cuts that go through CLIP together.
      split: what is divided over the devices: "cuts", "paintings" or "" for nothing.
    """

    size: tuple[int, int]
    latents: str
    optimizer: str
    cuts: int
    cut_method: str
    kinds: augment.Kinds
    terms: frozenset[str]
    overlay: bool
    micro: int
    remat: bool
    split: str


class Problem(NamedTuple):
    """What a painting is to be.

    Attributes:
      key: of the seed.
      targets: of each CLIP the unit vectors [P, d] of the prompt's parts.
      weights, stops: of the parts [P].
      eyes: weight of each CLIP [C].
      numbers: traced options by name.
      first, start: latents and pixels that it began from.
      overlay: [H, W, 4], or [1, 1, 4] where there is none.
      palette: colours [k, 3]; edge: that of the frame [3].
      head: of the aesthetic score, weights and bias [d + 1].
    """

    key: jax.Array
    targets: tuple[jax.Array, ...]
    weights: jax.Array
    stops: jax.Array
    eyes: jax.Array
    numbers: dict[str, jax.Array]
    first: jax.Array
    start: jax.Array
    overlay: jax.Array
    palette: jax.Array
    edge: jax.Array
    head: jax.Array


class State(NamedTuple):
    """Where a painting is: all that a resumed one needs.

    Attributes:
      z: the latents.
      optimizer: optax's state.
      average: the sum that the moving average is `average / total` of.
      step: steps done.
    """

    z: jax.Array
    optimizer: Any
    average: jax.Array
    total: jax.Array
    step: jax.Array


class Variables(NamedTuple):
    vqgan: Any
    points: latents.Table
    clips: tuple[Any, ...]


def direction(name: str) -> optax.GradientTransformation:
    """Optax's rule without a rate, which is traced and applied afterwards."""
    return {
        "adam": optax.scale_by_adam,
        "amsgrad": optax.scale_by_amsgrad,
        "nadam": functools.partial(optax.scale_by_adam, nesterov=True),
        "radam": optax.scale_by_radam,
        "adagrad": optax.scale_by_rss,
        "rmsprop": optax.scale_by_rms,
        "lion": optax.scale_by_lion,
        "sgd": optax.identity,
    }[name]()


@functools.partial(jax.jit, static_argnums=0)
def begin(optimizer: str, first: Float[Array, "n h w x"]) -> State:
    """The state before the first step of `optimizer` from these latents."""
    n = first.shape[0]
    rule = jax.vmap(direction(optimizer).init)(first)
    # A copy: the state is donated to the next step, and the problem keeps `first`.
    return State(jnp.copy(first), rule, jnp.zeros_like(first), jnp.zeros(n), jnp.zeros(n, jnp.int32))


class Programs:
    """The functions of one structure; the scan is compiled ahead, for a length."""

    def __init__(self, module: Autoencoder, eyes: tuple[Eye, ...], structure: Structure):
        self.module, self.eyes, self.structure = module, eyes, structure
        self.picture = jax.jit(functools.partial(_each, functools.partial(_picture, module, structure)))
        self._compiled: dict = {}

    def compiled(self, length: int, mesh, variables, problem, state) -> jax.stages.Compiled:
        """`(variables, problem, state) -> (state, losses [n, length])`; the state is donated."""
        shapes = jax.tree.map(lambda x: f"{x.dtype} {list(x.shape)}", (problem, state))
        which = (length, mesh, str(shapes))
        if which not in self._compiled:
            step = functools.partial(_step, self.module, self.eyes, self.structure)

            def scan(variables, problem, state):
                return jax.lax.scan(lambda s, _: step(variables, problem, s), state, length=length)

            out = NamedSharding(mesh, P("batch") if self.structure.split == "paintings" else P())
            advance = jax.jit(functools.partial(_each, scan), donate_argnums=2, out_shardings=out)
            with jax.set_mesh(mesh):
                self._compiled[which] = advance.lower(variables, problem, state).compile()
        return self._compiled[which]


@functools.lru_cache(maxsize=16)
def programs(module: Autoencoder, eyes: tuple[Eye, ...], structure: Structure) -> Programs:
    """Those of a structure, kept: a second painting of the same structure compiles nothing."""
    return Programs(module, eyes, structure)


def _each(function: Callable, variables, *trees):
    """Over the paintings, by vmap; a single one without, which leaves the compiler simpler shapes."""
    if jax.tree.leaves(trees)[0].shape[0] == 1:
        found = function(variables, *jax.tree.map(lambda x: x[0], trees))
        return jax.tree.map(lambda x: x[None], found)
    return jax.vmap(functools.partial(function, variables))(*trees)


def _step(module, eyes, structure: Structure, variables: Variables, problem: Problem, state: State):
    """One step of the optimiser, and the loss before it."""
    numbers = problem.numbers

    def loss(z):
        return objective(module, eyes, structure, variables, problem, state._replace(z=z))

    value, slope = jax.value_and_grad(loss)(state.z)
    move, rule = direction(structure.optimizer).update(slope, state.optimizer, state.z)
    late = state.step >= numbers["lr_decay_at"] * numbers["steps"]
    rate = numbers["lr"] * jnp.where(late, numbers["lr_decay"], 1.0)
    z = latents.bounded(structure.latents, state.z - rate * move, variables.points)
    decay = numbers["average"]
    average = decay * state.average + (1 - decay) * z
    total = decay * state.total + (1 - decay)
    return State(z, rule, average, total, state.step + 1), value


def temperature(numbers, step):
    """From the first to the last step, geometrically."""
    share = step / jnp.maximum(numbers["steps"] - 1, 1)
    first, last = numbers["temperature"], numbers["temperature_end"]
    return jnp.where(last > 0, first * (jnp.where(last > 0, last, first) / first) ** share, first)


def objective(module, eyes, structure: Structure, variables: Variables, problem: Problem, state: State):
    """The loss of one painting's latents at its step."""
    drawn, key = jax.random.split(jax.random.fold_in(problem.key, state.step))
    heat = temperature(problem.numbers, state.step)

    def decode(z):
        seen = latents.vectors(structure.latents, z, variables.points, heat, drawn)
        return _pixels(module, structure, variables, problem, seen)

    x = (jax.checkpoint(decode) if structure.remat else decode)(state.z)
    x = losses.clamp(x)
    total = jnp.zeros(())
    for number, eye in enumerate(eyes):
        scored = structure.terms & {"aesthetic"} if number == 0 else ()
        pulled, score = _seen(eye, structure, variables.clips[number], problem, number, x, key, bool(scored))
        total = total + problem.eyes[number] * pulled
        if scored:
            total = total - problem.numbers["aesthetic_weight"] * score
    return total + _besides(structure, problem, state.z, x)


def _pixels(module, structure: Structure, variables: Variables, problem: Problem, seen):
    """What the vectors show, nominally in [0, 1], under the overlay."""
    x = (module.apply(variables.vqgan, seen[None], method="decode_vectors")[0] + 1) / 2
    if structure.overlay:
        opacity = problem.overlay[..., 3:]
        x = (1 - opacity) * x + opacity * problem.overlay[..., :3]
    return x


def _seen(eye: Eye, structure: Structure, clip, problem: Problem, number: int, x, key, scored: bool):
    """Means over the cuts: of what the prompt's parts pull, and of the aesthetic score."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(structure.cuts))

    def part(x, keys):
        u = _embedded(eye, structure, clip, problem.numbers, x, keys)  # [m, d]
        v = problem.targets[number]
        shape = (u.shape[0], *v.shape)
        distance = losses.spherical(jnp.broadcast_to(u[:, None], shape), jnp.broadcast_to(v[None], shape))
        pulled = losses.pull(distance, problem.weights[None], problem.stops[None])
        score = jnp.sum(u @ problem.head[:-1] + problem.head[-1]) if scored else jnp.zeros(())
        return jnp.sum(pulled), score

    if structure.micro == structure.cuts:
        sums = part(x, keys)
    else:
        # A part's forward pass is made again in its backward pass, so that only one part's activations are held.
        add = jax.checkpoint(lambda x, keys: part(x, keys))
        parts = keys.reshape(structure.cuts // structure.micro, structure.micro)

        def body(sums, keys):
            return jax.tree.map(jnp.add, sums, add(x, keys)), None

        sums, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), parts)
    return jax.tree.map(lambda s: s / structure.cuts, sums)


def _embedded(eye: Eye, structure: Structure, clip, numbers, x, keys) -> Float[Array, "m d"]:
    """Unit vectors of cuts, one a key."""
    whole = cutouts.pooled(x, eye.size) if structure.cut_method == "pooling" else None

    def cut(key):
        place, change = jax.random.split(key)
        if whole is None:
            seen = cutouts.crop(x, *cutouts.square(place, structure.size, eye.size, numbers), eye.size)
        else:
            seen = whole
        return augment.augment(change, seen, numbers, structure.kinds)

    if structure.split == "cuts":
        keys = jax.lax.with_sharding_constraint(keys, P("batch"))
    cuts = jax.vmap(cut)(keys)
    if structure.split == "cuts":
        cuts = jax.lax.with_sharding_constraint(cuts, P("batch"))
    mean, std = (jnp.asarray(a, jnp.float32)[None, None, None] for a in (eye.mean, eye.std))
    return eye.module.apply(clip, (cuts - mean) / std, method="encode_image")


def _besides(structure: Structure, problem: Problem, z, x):
    """What is asked of the picture besides the prompt."""
    numbers = problem.numbers
    terms = {
        "init_weight": lambda: numbers["init_weight"] * jnp.mean((z - problem.first) ** 2),
        "init_pixels": lambda: numbers["init_pixels"] * jnp.mean((x - problem.start) ** 2),
        "smoothness": lambda: numbers["smoothness"] * losses.total_variation(x),
        "saturation": lambda: -numbers["saturation"] * losses.colourfulness(x),
        "symmetry": lambda: numbers["symmetry"] * losses.asymmetry(x),
        "edge": lambda: numbers["edge"] * losses.frame(x, problem.edge, numbers["edge_width"]),
        "palette": lambda: numbers["palette_weight"] * losses.off_palette(x, problem.palette),
    }
    return sum((term() for name, term in terms.items() if name in structure.terms), jnp.zeros(()))


def _picture(module, structure: Structure, variables: Variables, problem: Problem, state: State):
    """What the latents show, or their average: pixels in [0, 1], codes, and latents."""
    some = state.total > 0
    z = jnp.where(some, state.average / jnp.where(some, state.total, 1), state.z)
    heat = temperature(problem.numbers, state.step)
    seen = latents.shown(structure.latents, z, variables.points, heat)
    x = jnp.clip(_pixels(module, structure, variables, problem, seen), 0, 1)
    return x, latents.codes(structure.latents, z, variables.points), z
