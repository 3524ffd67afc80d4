"""Program of a painting for `train-jax plan --what=paint`: the scan over steps.

The config is a VQGAN's, and `--paint.clip` names a CLIP's; or, with a drawer that needs no VQGAN, it is the CLIP's.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from clip_jax.plan import build_module
from clip_jax.pretrained.checkpoint import abstract_variables as abstract_clip
from train_jax import config as config_lib
from train_jax import config_file
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from train_jax.options import Options, option
from train_jax.plan.program import Program, place, rounded, trace_program
from vqgan_jax import model
from vqgan_jax.guided import augment, drawers, latents, painting, trajectory
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.drawers.drawer import Drawer
from vqgan_jax.guided.drawers.vqgan import VqganLatents, Weights
from vqgan_jax.pretrained.checkpoint import abstract_variables as abstract_vqgan


@dataclasses.dataclass(frozen=True)
class PaintingOptions(Options):
    """Options `--paint.…`."""

    clip: str = option("clip/vit_b32", "config of the CLIP, a file or a name; its precision is that of the VQGAN's config")
    drawer: str = option("vqgan", "drawer; all but vqgan need a CLIP's config", choices=tuple(drawers.TABLE))
    drawer_options: str = option("", "options of the drawer, NAME=VALUE,NAME=VALUE")
    n: int = option(1, "paintings at once, over all devices", least=1)
    size: int = option(0, "side of the paintings in pixels; 0: training size of the VQGAN, or twice CLIP's", least=0)
    steps: int = option(50, "steps of the scan", least=1)
    cuts: int = option(options_lib.FIELDS["cuts"].default, "cutouts of each painting", least=1)
    micro_cuts: int = option(0, "cutouts that CLIP encodes at a time; 0: all", least=0)
    remat: bool = option(False, "recompute the decoder in the backward pass")


OPTIONS = PaintingOptions


def make(config: ConfigDict, folder: Path, mesh: Mesh, options: PaintingOptions) -> list[Program]:
    """Traces `steps` steps of paintings of one prompt each, with the other options at their defaults."""
    has_vqgan, clip_config = options.drawer == "vqgan", config
    if has_vqgan != (config.task != "clip_jax.task"):
        needed = "a VQGAN's config" if has_vqgan else "the config of a CLIP, and no VQGAN's"
        raise ConfigError(f"--paint.drawer={options.drawer} with the config of a {config.task}; it needs {needed}")
    if has_vqgan:
        clip_config = config_lib.resolve(config_file.load(options.clip))
        if clip_config.task != "clip_jax.task":
            raise ConfigError(f"--paint.clip={options.clip} is the config of a {clip_config.task}; it must be a CLIP's")
        clip_config.compute.dtype = config.compute.dtype
    elif options.clip != PaintingOptions.clip:
        raise ConfigError(f"--paint.clip={options.clip}: with drawer = {options.drawer} the CLIP is that of --config")
    clip = build_module(clip_config)
    side = options.size or (config.model.resolution if has_vqgan else 2 * clip.options.image.size)
    settings = {"size": (side, side), "steps": options.steps, "cuts": options.cuts, "micro_cuts": options.micro_cuts}
    settings |= {"drawer": options.drawer, "drawer_options": options.drawer_options or None}
    painted = options_lib.resolve(settings | {"remat": options.remat})
    if has_vqgan:
        compute = dataclasses.replace(Compute.parse(config.compute, "compute"), remat="none")  # as of loaded models
        drawer = VqganLatents(model.build(config.model, compute), painted.latents.latents)
    else:
        drawer = painted.drawing.make()
    painted.canvas.image_size(side, drawer.factor)  # refuses what the factor does not divide
    preprocess = clip_config.preprocess
    perceptor = trajectory.Perceptor(clip, clip.options.image.size, tuple(preprocess.mean), tuple(preprocess.std))
    variables, problem, state = abstract_arguments(drawer, perceptor, painted, options.n, (side, side))
    variables = rounded_models(variables, clip.compute.array_dtype)
    divides, micro_cuts = options.n % mesh.size == 0, options.micro_cuts or options.cuts
    if not divides and micro_cuts % mesh.size:
        raise ConfigError(
            f"--paint.n={options.n}, {micro_cuts} cuts at a time: one must be a multiple of the {mesh.size} devices"
        )
    static = trajectory.StaticConfig(
        drawer.without_weights(), (side, side), painted.optimization.optimizer, options.cuts, painted.cutouts.cut_method,
        augment.select_augmentations(painted.hparams()), frozenset(), micro_cuts, options.remat,
        split="" if mesh.size == 1 else "paintings" if divides else "cuts",
    )  # fmt: skip
    spec = P("batch") if divides else P()
    program = trajectory.Programs((perceptor,), static).jit(options.steps, mesh)
    arguments = {"weights": place(variables, mesh, P()), "problem": place(problem, mesh, spec)}
    return [
        trace_program(
            "paint", program, mesh, arguments | {"state": place(state, mesh, spec)},
            unit="steps", units=options.n * options.steps, passes=options.steps,
        )
    ]  # fmt: skip


def rounded_models(variables: trajectory.Variables, dtype: DTypeLike) -> trajectory.Variables:
    """Returns the variables of a painting whose models are loaded in `dtype`."""
    weights = variables.drawer
    if isinstance(weights, Weights):
        weights = weights._replace(vqgan=rounded(weights.vqgan, dtype))
    return variables._replace(drawer=weights, clips=tuple(rounded(clip, dtype) for clip in variables.clips))


def abstract_arguments(
    drawer: Drawer, perceptor: trajectory.Perceptor, options: options_lib.Options, n: int, size: tuple[int, int]
) -> tuple[trajectory.Variables, trajectory.Problem, trajectory.State]:
    """Returns the shapes and dtypes that `painting.Painter` gives its arguments for `n` prompts of one part."""

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *shape), jnp.float32)

    if isinstance(drawer, VqganLatents):
        module = drawer.module
        weights = abstract_vqgan(module)
        codebook = jax.eval_shape(lambda w: latents.codebook_vectors(module, w), weights)
        codes = jax.ShapeDtypeStruct((n, size[0] // module.factor, size[1] // module.factor), jnp.int32)
        kind, num_codes = drawer.latents, module.quantizer.size
        init_latents = jax.eval_shape(lambda x, book: latents.from_codes(kind, x, book, num_codes), codes, codebook)
        weights = Weights(weights, codebook)
    else:
        arrays = (drawer.weights, drawer.init(size, range(n)))
        weights, init_latents = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    problem = trajectory.Problem(
        key=jax.eval_shape(painting.keys_from_seeds, jax.ShapeDtypeStruct((n,), jnp.uint32)),
        targets=(floats(1, perceptor.module.options.embed_dim),),
        weights=floats(1),
        stops=floats(1),
        clip_weights=floats(1),
        hparams={name: floats() for name in options.hparams()},
        init_latents=init_latents,
        init_images=floats(*size, 3),
        overlay=None,
        palette=None,
        border_colour=None,
        aesthetic_head=None,
        prior_condition=None,
    )
    state = jax.eval_shape(lambda z: trajectory.init_state(options.optimization.optimizer, z), init_latents)
    return trajectory.Variables(weights, (abstract_clip(perceptor.module),)), problem, state
