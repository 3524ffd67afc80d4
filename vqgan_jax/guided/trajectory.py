"""The optimisation of a painting's latents: one compiled scan over its steps, for one painting or a batch of them.

    state = init_state(optimizer, init_latents)
    state, losses = programs.compiled(length, …)(variables, problem, state)
    images, codes, latents = renderer(module, …)(variables, hparams, overlay, state)

A leading axis n is that of the paintings. The random numbers of a step belong to (seed, step, cut): they are the same
whatever is painted beside it, on however many devices, in micro-batches of whatever size, and after a resumption.
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


class Perceptor(NamedTuple):
    """A CLIP without its weights: the module, and size and normalisation of its images."""

    module: nn.Module
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class StaticConfig(NamedTuple):
    """What a step's program depends on beside shapes; everything else may change without another program.

    Attributes:
      augmentations: those that any of the paintings has.
      terms: those of TERMS that any of the paintings weighs.
      micro_cuts: cuts that go through CLIP together.
      split: what is divided over the devices: "cuts", "paintings" or "" for nothing.
    """

    latents: str
    optimizer: str
    cuts: int
    cut_method: str
    augmentations: augment.Augmentations
    terms: frozenset[str]
    micro_cuts: int
    remat: bool
    split: str


class Problem(NamedTuple):
    """What is minimised, as arrays.

    Attributes:
      key: of the seed.
      targets: of each CLIP the unit vectors [P, d] of the prompt's parts.
      weights, stops: of the parts [P].
      clip_weights: of the CLIPs [C].
      hparams: traced options by name.
      init_latents, init_images: the latents and pixels of the start.
      overlay: [H, W, 4].
      palette: colours [k, 3].
      border_colour: [3].
      aesthetic_head: weights and bias [d + 1].
    """

    key: jax.Array
    targets: tuple[jax.Array, ...]
    weights: jax.Array
    stops: jax.Array
    clip_weights: jax.Array
    hparams: dict[str, jax.Array]
    init_latents: jax.Array
    init_images: jax.Array
    overlay: jax.Array | None
    palette: jax.Array | None
    border_colour: jax.Array | None
    aesthetic_head: jax.Array | None


class State(NamedTuple):
    """The state of the optimisation: all that a resumed painting needs.

    Attributes:
      z: the latents.
      optimizer: optax's state.
      average: the moving average of the latents is `average / total`.
      step: steps done.
    """

    z: jax.Array
    optimizer: Any
    average: jax.Array
    total: jax.Array
    step: jax.Array


class Variables(NamedTuple):
    """Weights of the models, and the vectors of all codes."""

    vqgan: Any
    codebook: latents.Codebook
    clips: tuple[Any, ...]


def gradient_transformation(name: str) -> optax.GradientTransformation:
    """Optax's rule without a learning rate, which is traced and applied afterwards."""
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
def init_state(optimizer: str, init_latents: Float[Array, "n h w x"]) -> State:
    """The state before the first step of `optimizer` from these latents."""
    n = init_latents.shape[0]
    optimizer_state = jax.vmap(gradient_transformation(optimizer).init)(init_latents)
    # A copy: the state is donated to the next step, and the problem keeps `init_latents`.
    return State(
        jnp.copy(init_latents), optimizer_state, jnp.zeros_like(init_latents), jnp.zeros(n), jnp.zeros(n, jnp.int32)
    )


class Programs:
    """The scans of one static configuration, each compiled ahead for its length and its arrays' shapes."""

    def __init__(self, module: Autoencoder, perceptors: tuple[Perceptor, ...], config: StaticConfig):
        self.module, self.perceptors, self.config = module, perceptors, config
        self._compiled: dict = {}

    def compiled(self, length: int, mesh, variables, problem, state) -> jax.stages.Compiled:
        """`(variables, problem, state) -> (state, losses [n, length])`; the state is donated."""
        shapes = jax.tree.map(lambda x: f"{x.dtype} {list(x.shape)}", (problem, state))
        cache_key = (length, mesh, str(shapes))
        if cache_key not in self._compiled:
            step = functools.partial(_step, self.module, self.perceptors, self.config)

            def scan(variables, problem, state):
                return jax.lax.scan(lambda s, _: step(variables, problem, s), state, length=length)

            out = NamedSharding(mesh, P("batch") if self.config.split == "paintings" else P())
            advance = jax.jit(functools.partial(_map_paintings, scan), donate_argnums=2, out_shardings=out)
            with jax.set_mesh(mesh):
                self._compiled[cache_key] = advance.lower(variables, problem, state).compile()
        return self._compiled[cache_key]


@functools.lru_cache(maxsize=16)
def programs(module: Autoencoder, perceptors: tuple[Perceptor, ...], config: StaticConfig) -> Programs:
    """The programs of a static configuration, cached: a second painting of the same one compiles nothing."""
    return Programs(module, perceptors, config)


@functools.lru_cache(maxsize=16)
def renderer(module: Autoencoder, kind: str) -> Callable:
    """The jitted `(variables, hparams, overlay, state) -> (images in [0, 1], codes, latents)` for latents of a kind.

    It depends neither on CLIPs nor on losses: drop `Variables.clips` and `State.optimizer`, and paintings that differ in
    them share a program.
    """
    return jax.jit(functools.partial(_map_paintings, functools.partial(_render, module, kind)))


def _map_paintings(function: Callable, variables, *trees):
    """Maps over the paintings by vmap; calls the function for a single one, which leaves the compiler simpler shapes."""
    if jax.tree.leaves(trees)[0].shape[0] == 1:
        outputs = function(variables, *jax.tree.map(lambda x: x[0], trees))
        return jax.tree.map(lambda x: x[None], outputs)
    return jax.vmap(functools.partial(function, variables))(*trees)


def _step(module, perceptors, config: StaticConfig, variables: Variables, problem: Problem, state: State):
    """One step of the optimiser, and the loss before it."""
    hparams = problem.hparams

    def loss(z):
        return objective(module, perceptors, config, variables, problem, state._replace(z=z))

    value, grads = jax.value_and_grad(loss)(state.z)
    updates, optimizer_state = gradient_transformation(config.optimizer).update(grads, state.optimizer, state.z)
    has_decayed = state.step >= hparams["lr_decay_at"] * hparams["steps"]
    lr = hparams["lr"] * jnp.where(has_decayed, hparams["lr_decay"], 1.0)
    z = latents.clip_to_codebook(config.latents, state.z - lr * updates, variables.codebook)
    decay = hparams["average"]
    average = decay * state.average + (1 - decay) * z
    total = decay * state.total + (1 - decay)
    return State(z, optimizer_state, average, total, state.step + 1), value


def temperature(hparams, step):
    """The temperature of a step, geometrically from the first to the last."""
    progress = step / jnp.maximum(hparams["steps"] - 1, 1)
    first, last = hparams["temperature"], hparams["temperature_end"]
    return jnp.where(last > 0, first * (jnp.where(last > 0, last, first) / first) ** progress, first)


def objective(module, perceptors, config: StaticConfig, variables: Variables, problem: Problem, state: State):
    """The loss of one painting's latents at its step."""
    gumbel_key, cuts_key = jax.random.split(jax.random.fold_in(problem.key, state.step))
    heat = temperature(problem.hparams, state.step)

    def decode(z):
        quantized = latents.quantize(config.latents, z, variables.codebook, heat, gumbel_key)
        return _decode(module, variables, problem.overlay, quantized)

    x = (jax.checkpoint(decode) if config.remat else decode)(state.z)
    x = losses.clamp_with_grad(x)
    total = jnp.zeros(())
    for index, perceptor in enumerate(perceptors):
        with_score = index == 0 and "aesthetic" in config.terms
        prompt_loss, score = _clip_losses(
            perceptor, config, variables.clips[index], problem, index, x, cuts_key, with_score
        )
        total = total + problem.clip_weights[index] * prompt_loss
        if with_score:
            total = total - problem.hparams["aesthetic_weight"] * score
    return total + _image_losses(config, problem, state.z, x)


def _decode(module, variables: Variables, overlay, quantized):
    """Decodes vectors to pixels, nominally in [0, 1], under the overlay."""
    x = (module.apply(variables.vqgan, quantized[None], method="decode_vectors")[0] + 1) / 2
    if overlay is not None:
        opacity = overlay[..., 3:]
        x = (1 - opacity) * x + opacity * overlay[..., :3]
    return x


def _clip_losses(
    perceptor: Perceptor, config: StaticConfig, clip, problem: Problem, index: int, x, key, with_score: bool
):
    """Means over the cuts of the prompt's loss and of the aesthetic score."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(config.cuts))

    def sums_over(x, keys):
        u = _encode_cutouts(perceptor, config, clip, problem.hparams, x, keys)  # [m, d]
        v = problem.targets[index]  # [P, d]
        shape = (u.shape[0], *v.shape)
        distance = losses.spherical_distance(jnp.broadcast_to(u[:, None], shape), jnp.broadcast_to(v[None], shape))
        prompt_loss = losses.prompt_loss(distance, problem.weights[None], problem.stops[None])
        head = problem.aesthetic_head
        score = jnp.sum(u @ head[:-1] + head[-1]) if with_score else jnp.zeros(())
        return jnp.sum(prompt_loss), score

    if config.micro_cuts == config.cuts:
        sums = sums_over(x, keys)
    else:
        # Each part's forward pass is computed again in its backward pass: only one part's activations are held.
        rematerialised = jax.checkpoint(lambda x, keys: sums_over(x, keys))

        def body(sums, keys):
            return jax.tree.map(jnp.add, sums, rematerialised(x, keys)), None

        parts = keys.reshape(config.cuts // config.micro_cuts, config.micro_cuts)
        sums, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), parts)
    return jax.tree.map(lambda s: s / config.cuts, sums)


def _encode_cutouts(perceptor: Perceptor, config: StaticConfig, clip, hparams, image, keys) -> Float[Array, "m d"]:
    """Unit vectors of random cuts of an image, one for each key."""
    pooled = cutouts.pool(image, perceptor.size) if config.cut_method == "pooling" else None

    def cutout(key):
        crop_key, augment_key = jax.random.split(key)
        if pooled is None:
            square = cutouts.random_square(crop_key, image.shape[:2], perceptor.size, hparams)
            cut = cutouts.crop(image, *square, perceptor.size)
        else:
            cut = pooled
        return augment.augment(augment_key, cut, hparams, config.augmentations)

    if config.split == "cuts":
        keys = jax.lax.with_sharding_constraint(keys, P("batch"))
    cuts = jax.vmap(cutout)(keys)
    if config.split == "cuts":
        cuts = jax.lax.with_sharding_constraint(cuts, P("batch"))
    mean, std = (jnp.asarray(a, jnp.float32)[None, None, None] for a in (perceptor.mean, perceptor.std))
    return perceptor.module.apply(clip, (cuts - mean) / std, method="encode_image")


def _image_losses(config: StaticConfig, problem: Problem, z, x):
    """The weighted sum of the losses beside those of CLIP."""
    hparams = problem.hparams
    terms = {
        "init_weight": lambda: hparams["init_weight"] * jnp.mean((z - problem.init_latents) ** 2),
        "init_pixels": lambda: hparams["init_pixels"] * jnp.mean((x - problem.init_images) ** 2),
        "smoothness": lambda: hparams["smoothness"] * losses.total_variation(x),
        "saturation": lambda: -hparams["saturation"] * losses.colourfulness(x),
        "symmetry": lambda: hparams["symmetry"] * losses.asymmetry(x),
        "edge": lambda: hparams["edge"] * losses.border_loss(x, problem.border_colour, hparams["edge_width"]),
        "palette": lambda: hparams["palette_weight"] * losses.palette_loss(x, problem.palette),
    }
    return sum((term() for name, term in terms.items() if name in config.terms), jnp.zeros(()))


def _render(module, kind: str, variables: Variables, hparams, overlay, state: State):
    """Pixels in [0, 1], codes and latents of a state, or of the latents' moving average."""
    has_average = state.total > 0
    z = jnp.where(has_average, state.average / jnp.where(has_average, state.total, 1), state.z)
    quantized = latents.quantize_greedily(kind, z, variables.codebook, temperature(hparams, state.step))
    x = jnp.clip(_decode(module, variables, overlay, quantized), 0, 1)
    return x, latents.codes(kind, z, variables.codebook), z
