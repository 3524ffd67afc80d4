"""Optimisation of a drawer's parameters as one compiled scan over steps, for a batch of paintings.

    state = init_state(optimizer, init_latents)
    state, losses = programs.compile(length, …)(variables, problem, state)
    images, codes, parameters = get_renderer(drawer, size, filters)(variables, hparams, overlay, state)

The leading axis n is the batch of paintings. Random numbers depend on (seed, step, cutout) only, not on the other
paintings of the batch, the number of devices, the micro-batch size, or resumption.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from nn_jax.code_transformer import CodeTransformer
from vqgan_jax.guided import augment, colour, cutouts, losses, style
from vqgan_jax.guided.drawers.drawer import Context, Drawer, Parameters
from vqgan_jax.guided.filters import Filters, apply_filters
from vqgan_jax.guided.keyframes import Keyframes, weights_at
from vqgan_jax.guided.prior import PriorWeights, mean_nats
from vqgan_jax.guided.stopping import Stopping, stop_without_improvement
from vqgan_jax.guided.views import Views

TERMS = (
    "init_weight", "init_pixels", "smoothness", "saturation", "symmetry", "edge", "palette", "aesthetic", "prior",
    "sparsity", "style", "vignette",
)  # fmt: skip


class Perceptor(NamedTuple):
    """A CLIP without weights: module, image size and normalisation."""

    module: nn.Module
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class StaticConfig(NamedTuple):
    """Static configuration of a step: everything besides shapes that requires another compilation.

    Attributes:
      drawer: what is optimised, without weights.
      size: height and width of the pictures.
      augmentations: augmentations that are enabled in any painting.
      terms: names in TERMS with a non-zero weight in any painting.
      micro_cuts: number of cutouts that CLIP encodes at a time.
      split: axis that is sharded over the devices: "cuts", "paintings", or "" for none.
      prior: second stage whose likelihood is the term "prior"; None: no such term.
      wide: whether some cutouts show the whole picture on paper.
      custom_losses: functions [n, H, W, 3] -> [n] that a user wrote.
      filters: filters of the rendered pictures.
      tile: rows and columns of copies that the CLIPs see.
    """

    drawer: Drawer
    size: tuple[int, int]
    optimizer: str
    cuts: int
    cut_method: str
    augmentations: augment.Augmentations
    terms: frozenset[str]
    micro_cuts: int
    remat: bool
    split: str
    prior: CodeTransformer | None = None
    custom_losses: tuple[Callable, ...] = ()
    wide: bool = False
    filters: Filters = Filters()
    tile: tuple[int, int] = (1, 1)


class Problem(NamedTuple):
    """Arrays that define the objective.

    Attributes:
      key: random key made from the seed.
      targets: embeddings [P, d] of the prompt parts for each CLIP.
      weights, stops: weights and stops [P] of the parts.
      clip_weights: weights [C] of the CLIPs.
      hparams: traced options by name.
      init_latents, init_images: initial parameters of the drawer, and pixels.
      overlay: RGBA image [H, W, 4].
      palette: colours [k, 3].
      border_colour: RGB colour [3].
      aesthetic_head: weight and bias [d + 1].
      prior_condition: tokens [k, c] of the prior's condition, and of none if k = 2.
      custom_weights: weights [k] of the custom losses.
      views: what the parts of a prompt see, if one of them has a place.
      keyframes: weights that change in time, if there are any.
      rate_drops: steps [k] at which the learning rate drops, if it does.
      style: Gram matrices of the style.
      vignette_colour: RGB colour [3].
      settled: first step at which a loss counts for `stop_after`, if it is not 0.
    """

    key: jax.Array
    targets: tuple[jax.Array, ...]
    weights: jax.Array
    stops: jax.Array
    clip_weights: jax.Array
    hparams: dict[str, jax.Array]
    init_latents: Parameters
    init_images: jax.Array
    overlay: jax.Array | None
    palette: jax.Array | None
    border_colour: jax.Array | None
    aesthetic_head: jax.Array | None
    prior_condition: jax.Array | None
    custom_weights: jax.Array | None = None
    views: Views | None = None
    keyframes: Keyframes | None = None
    rate_drops: jax.Array | None = None
    style: list[jax.Array] | None = None
    vignette_colour: jax.Array | None = None
    settled: jax.Array | None = None


class State(NamedTuple):
    """State of the optimisation, sufficient for exact resumption.

    Attributes:
      z: parameters of the drawer.
      optimizer: state of the optax transformation.
      average, total: the moving average of the parameters is `average / total`.
      step: number of completed steps. It stays where a painting stops.
      stopping: None if paintings never stop before the last step.
    """

    z: Parameters
    optimizer: Any
    average: Parameters
    total: jax.Array
    step: jax.Array
    stopping: Stopping | None = None


class Variables(NamedTuple):
    """Weights of the drawer, of the CLIPs, of the prior, and of the network of the style if it is not a CLIP."""

    drawer: Any
    clips: tuple[Any, ...]
    prior: PriorWeights | None = None
    style: Any = None


def gradient_transformation(name: str) -> optax.GradientTransformation:
    """Returns an optax transformation without a learning rate, which is traced and applied separately."""
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
def init_state(optimizer: str, init_latents: Parameters) -> State:
    """Creates the optimisation state of the parameters of `n` pictures before the first step."""
    n = jax.tree.leaves(init_latents)[0].shape[0]
    optimizer_state = jax.vmap(gradient_transformation(optimizer).init)(init_latents)
    # The first step donates the state, so `z` must not share the buffer of `init_latents`, which `Problem` holds.
    z, average, total = jax.tree.map(jnp.copy, init_latents), jax.tree.map(jnp.zeros_like, init_latents), jnp.zeros(n)
    return State(z, optimizer_state, average, total, step=jnp.zeros(n, jnp.int32))


class Programs:
    """Compiled scans of one static configuration, cached by length, mesh and array shapes."""

    def __init__(self, perceptors: tuple[Perceptor, ...], config: StaticConfig):
        self.perceptors, self.config = perceptors, config
        self._compiled: dict = {}

    def compile(self, length: int, mesh, variables, problem, state) -> jax.stages.Compiled:
        """Compiles `(variables, problem, state) -> (state, losses [n, length])`, which runs `length` steps.

        The program donates `state`.
        """
        shapes = jax.tree.map(lambda x: f"{x.dtype} {list(x.shape)}", (variables, problem, state))
        cache_key = (length, mesh, str(shapes))
        if cache_key not in self._compiled:
            with jax.set_mesh(mesh):
                self._compiled[cache_key] = self.jit(length, mesh).lower(variables, problem, state).compile()
        return self._compiled[cache_key]

    def jit(self, length: int, mesh) -> Callable:
        """Jits the function of `compile`."""
        step = functools.partial(_optimization_step, self.perceptors, self.config)

        def scan(variables, problem, state):
            return jax.lax.scan(lambda s, _: step(variables, problem, s), state, length=length)

        out_sharding = NamedSharding(mesh, P("batch") if self.config.split == "paintings" else P())
        return jax.jit(functools.partial(_map_paintings, scan), donate_argnums=2, out_shardings=out_sharding)


@functools.lru_cache(maxsize=16)
def get_programs(perceptors: tuple[Perceptor, ...], config: StaticConfig) -> Programs:
    """Returns the programs of a static configuration from a cache, so that equal paintings compile once."""
    return Programs(perceptors, config)


@functools.lru_cache(maxsize=16)
def get_renderer(drawer: Drawer, size: tuple[int, int], filters: Filters) -> Callable:
    """Returns the jitted `(variables, hparams, overlay, state) -> (images in [0, 1], codes, parameters)`.

    The function uses neither CLIPs nor the optimiser: pass variables and state without `clips` and `optimizer`, so that
    paintings that differ in CLIPs or optimisers share a program.
    """
    return jax.jit(functools.partial(_map_paintings, functools.partial(_render, drawer, size, filters)))


def _map_paintings(function: Callable, variables, *trees):
    """Applies vmap over paintings. A single painting is computed without vmap, which simplifies shapes for XLA."""
    if jax.tree.leaves(trees)[0].shape[0] == 1:
        outputs = function(variables, *jax.tree.map(lambda x: x[0], trees))
        return jax.tree.map(lambda x: x[None], outputs)
    return jax.vmap(functools.partial(function, variables))(*trees)


def _optimization_step(perceptors, config: StaticConfig, variables: Variables, problem: Problem, state: State):
    """Runs one optimisation step. Returns the new state and the loss before the step."""
    hparams = problem.hparams

    def loss(z):
        return objective(perceptors, config, variables, problem, state._replace(z=z))

    value, grads = jax.value_and_grad(loss)(state.z)
    updates, optimizer_state = gradient_transformation(config.optimizer).update(grads, state.optimizer, state.z)
    has_decayed = state.step >= hparams["lr_decay_at"] * hparams["steps"]
    lr = hparams["lr"] * jnp.where(has_decayed, hparams["lr_decay"], 1.0)
    if problem.rate_drops is not None:
        lr = lr * rate_factor(problem.rate_drops, hparams["lr_drop"], state.step)
    z = jax.tree.map(lambda z, update: z - lr * update, state.z, updates)
    z = config.drawer.project(z, Context(config.size, variables.drawer))
    decay = hparams["average"]
    average = jax.tree.map(lambda average, z: decay * average + (1 - decay) * z, state.average, z)
    total = decay * state.total + (1 - decay)
    new_state = State(z, optimizer_state, average, total, state.step + 1)
    if state.stopping is not None:
        new_state = stop_without_improvement(hparams, problem.settled, state, new_state, value)
    return new_state, value


def rate_factor(drops: Float[Array, "k"], factor: Float[Array, ""], step: Int[Array, ""]) -> Float[Array, ""]:
    """Computes the factor on the learning rate at a step, after drops by `factor` at the steps `drops`."""
    return factor ** jnp.sum(step >= drops)


def get_temperature(hparams, step):
    """Computes the temperature at a step, interpolated geometrically from the first to the last step."""
    progress = step / jnp.maximum(hparams["steps"] - 1, 1)
    first, last = hparams["temperature"], hparams["temperature_end"]
    return jnp.where(last > 0, first * (jnp.where(last > 0, last, first) / first) ** progress, first)


def objective(perceptors, config: StaticConfig, variables: Variables, problem: Problem, state: State):
    """Computes the loss of one painting at its current step."""
    drawer_key, cuts_key = jax.random.split(jax.random.fold_in(problem.key, state.step))
    tau = get_temperature(problem.hparams, state.step)
    context = Context(config.size, variables.drawer, tau, drawer_key)
    if problem.keyframes is not None:
        problem = problem._replace(weights=weights_at(problem.keyframes, state.step))

    def render(z):
        return _render_picture(config.drawer, config.filters, context, problem.overlay, z)

    x = (jax.checkpoint(render) if config.remat else render)(state.z)
    x = losses.clamp_with_grad(x)
    if x.shape[-1] == 4:  # over another colour at each step, so that what is transparent is no part of the picture
        x = colour.flatten(x, jax.random.uniform(jax.random.fold_in(drawer_key, 1), (1, 1, 3)))
    seen = x if config.tile == (1, 1) else jnp.tile(x, (*config.tile, 1))
    total = jnp.zeros(())
    for index, perceptor in enumerate(perceptors):
        with_score = index == 0 and "aesthetic" in config.terms
        prompt_loss, score = _clip_losses(
            perceptor, config, variables.clips[index], problem, index, seen, cuts_key, with_score
        )
        total = total + problem.clip_weights[index] * prompt_loss
        if with_score:
            total = total - problem.hparams["aesthetic_weight"] * score
    if "prior" in config.terms:
        params, spacing = variables.prior
        codes = config.drawer.probabilities(state.z, context, spacing)
        # The likeliest image shows nothing: with the whole weight from the first step on, nothing would ever appear.
        start = problem.hparams["prior_start"]
        progress = (state.step / problem.hparams["steps"] - start) / (1 - start)
        weight = problem.hparams["prior_weight"] * jnp.maximum(progress, 0)
        guidance = problem.hparams["prior_guidance"]
        total = total + weight * mean_nats(config.prior, params, problem.prior_condition, guidance, codes)
    if "sparsity" in config.terms:
        total = total + problem.hparams["sparsity"] * config.drawer.regularise(state.z, context)
    if "style" in config.terms:
        grams = functools.partial(_style_grams, perceptors[0], variables)
        grams = (jax.checkpoint(grams) if config.remat else grams)(x)
        total = total + problem.hparams["style_weight"] * style.style_loss(grams, problem.style)
    return total + _image_losses(config, problem, state.z, x)


def _render_picture(drawer: Drawer, active: Filters, context: Context, overlay, z, sharpen=None):
    """Renders pixels, nominally in [0, 1], applies the filters, and composites the overlay."""
    x = apply_filters(active, drawer.render(z, context), sharpen)
    return x if overlay is None else colour.cover(x, overlay)


def _clip_losses(
    perceptor: Perceptor, config: StaticConfig, clip, problem: Problem, index: int, x, key, with_score: bool
):
    """Computes the prompt loss and the aesthetic score, averaged over cutouts."""
    # Cutouts are numbered over all CLIPs and views: each CLIP sees its own, of each view as many.
    views = 1 if problem.views is None else len(problem.views.masks)
    numbers = index * views * config.cuts + jnp.arange(views * config.cuts)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    is_wide = view = None
    if config.wide:  # the first ones of each view
        is_wide = jnp.arange(views * config.cuts) % config.cuts < jnp.round(problem.hparams["wide"] * config.cuts)
    if problem.views is not None:
        view = jnp.repeat(jnp.arange(views), config.cuts)

    def sums_over(x, cuts):
        """Sums over cutouts of one view."""
        keys, is_wide, view = cuts
        weights, box = problem.weights, None
        if view is not None:
            mask, box, parts, whole = jax.tree.map(lambda values: values[view[0]], problem.views)
            x, weights = cutouts.GREY + mask[..., None] * (x - cutouts.GREY), weights * parts
        u = _encode_cutouts(perceptor, config, clip, problem.hparams, x, keys, is_wide, box)  # [m, d]
        v = problem.targets[index]  # [P, d]
        shape = (u.shape[0], *v.shape)
        distance = losses.spherical_distance(jnp.broadcast_to(u[:, None], shape), jnp.broadcast_to(v[None], shape))
        prompt_loss = losses.prompt_loss(distance, weights[None], problem.stops[None])
        head = problem.aesthetic_head
        score = jnp.sum(u @ head[:-1] + head[-1]) if with_score else jnp.zeros(())
        return jnp.sum(prompt_loss), score if view is None else whole * score

    cuts = (keys, is_wide, view)
    micro_batches = jax.tree.map(lambda x: x.reshape(-1, config.micro_cuts), cuts)
    if config.micro_cuts == config.cuts:
        by_view = jax.vmap(sums_over, in_axes=(None, 0))
        sums = sums_over(x, cuts) if view is None else jax.tree.map(jnp.sum, by_view(x, micro_batches))
    else:
        # Rematerialisation keeps the activations of one micro-batch at a time.
        sums_with_remat = jax.checkpoint(lambda x, cuts: sums_over(x, cuts))

        def body(sums, cuts):
            return jax.tree.map(jnp.add, sums, sums_with_remat(x, cuts)), None

        sums, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), micro_batches)
    return jax.tree.map(lambda s: s / config.cuts, sums)


def _encode_cutouts(
    perceptor: Perceptor, config: StaticConfig, clip, hparams, image, keys,
    is_wide: Bool[Array, "m"] | None, box: Float[Array, "4"] | None,
) -> Float[Array, "m d"]:  # fmt: skip
    """Embeds random cutouts of an image as unit vectors, one per key.

    Args:
      is_wide: which cutouts are wide; None: none of them.
      box: top, left, height and width of the part of the image that is seen; None: the whole image.
    """
    pooled = cutouts.pool(image, perceptor.size) if config.cut_method == "pooling" else None

    shape = image.shape[:2] if box is None else (box[2], box[3])

    def make_cutout(key, is_wide):
        crop_key, augment_key = jax.random.split(key)
        if pooled is not None:
            cutout = pooled
        else:
            square = cutouts.sample_square(crop_key, shape, perceptor.size, hparams)
            if is_wide is not None:
                wide = cutouts.sample_wide_square(crop_key, shape, hparams)
                square = [jnp.where(is_wide, a, b) for a, b in zip(wide, square, strict=True)]
            if box is not None:
                square = [square[0] + box[0], square[1] + box[1], square[2]]
            crop = cutouts.crop if is_wide is None else cutouts.crop_on_paper
            cutout = crop(image, *square, perceptor.size)
        return augment.augment(augment_key, cutout, hparams, config.augmentations)

    if config.split == "cuts":
        keys = jax.lax.with_sharding_constraint(keys, P("batch"))
    cuts = jax.vmap(make_cutout)(keys, is_wide)
    if config.split == "cuts":
        cuts = jax.lax.with_sharding_constraint(cuts, P("batch"))
    mean, std = (jnp.asarray(a, jnp.float32)[None, None, None] for a in (perceptor.mean, perceptor.std))
    return perceptor.module.apply(clip, (cuts - mean) / std, method="encode_image")


def _style_grams(perceptor: Perceptor, variables: Variables, x) -> style.Grams:
    if variables.style is not None:
        return style.vgg_grams(variables.style, x)
    return style.clip_grams(perceptor.module, variables.clips[0], x, perceptor.mean, perceptor.std)


def _image_losses(config: StaticConfig, problem: Problem, z, x):
    """Computes the weighted sum of the losses that do not use CLIP."""
    hparams = problem.hparams
    terms = {
        "init_weight": lambda: hparams["init_weight"] * _mean_squares(z, problem.init_latents),
        "init_pixels": lambda: hparams["init_pixels"] * jnp.mean((x - problem.init_images) ** 2),
        "smoothness": lambda: hparams["smoothness"] * losses.total_variation(x),
        "saturation": lambda: -hparams["saturation"] * losses.colourfulness(x),
        "symmetry": lambda: hparams["symmetry"] * losses.asymmetry(x),
        "edge": lambda: hparams["edge"] * losses.border_loss(x, problem.border_colour, hparams["edge_width"]),
        "vignette": lambda: (
            hparams["vignette"] * losses.vignette_loss(x, problem.vignette_colour, hparams["vignette_width"])
        ),
        "palette": lambda: hparams["palette_weight"] * losses.palette_loss(x, problem.palette),
    }
    total = sum((term() for name, term in terms.items() if name in config.terms), jnp.zeros(()))
    if config.custom_losses:
        total = total + problem.custom_weights @ jnp.stack([loss(x[None])[0] for loss in config.custom_losses])
    return total


def _mean_squares(z: Parameters, start: Parameters) -> Float[Array, ""]:
    """Computes the mean squared difference, of several arrays the sum of theirs."""
    return jax.tree.reduce(operator.add, jax.tree.map(lambda a, b: jnp.mean((a - b) ** 2), z, start))


def _render(
    drawer: Drawer, size: tuple[int, int], active: Filters, variables: Variables, hparams, overlay, state: State
):
    """Renders a state, or its moving average if enabled, to pixels in [0, 1], codes and parameters."""
    has_average = state.total > 0
    total = jnp.where(has_average, state.total, 1)
    z = jax.tree.map(lambda average, z: jnp.where(has_average, average / total, z), state.average, state.z)
    context = Context(size, variables.drawer, get_temperature(hparams, state.step))
    sharpen = hparams["sharpen"] if active.sharpen else None
    x = jnp.clip(_render_picture(drawer, active, context, overlay, z, sharpen), 0, 1)
    return x, drawer.codes(z, context), z
