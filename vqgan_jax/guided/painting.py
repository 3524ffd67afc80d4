"""Painting from prompts: `paint`, and `paint_many` for grids of prompts, seeds and settings."""

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32, UInt8
from tqdm import tqdm

from clip_jax.clip import Clip
from train_jax.errors import ConfigError
from train_jax.profiling import MemoryPlan
from vqgan_jax.guided import (
    augment,
    colour,
    enlargement,
    filters,
    keyframes,
    latents,
    memory,
    prior,
    resume,
    second_stages,
    starts,
    stopping,
    style,
    targets,
    trajectory,
    views,
)
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.drawers.drawer import Drawer, Parameters
from vqgan_jax.guided.drawers.vqgan import VqganLatents
from vqgan_jax.guided.options import Options
from vqgan_jax.guided.prompts import Scene, parse_scene
from vqgan_jax.vqgan import Vqgan

log = logging.getLogger(__name__)

Clips = Clip | Sequence[Clip]


@dataclasses.dataclass(frozen=True)
class Painting:
    """Result of `paint` (leading axis: images) or `paint_many` (leading axes: prompts, seeds, settings).

    Attributes:
      images: final images, RGB or, of some drawers, RGBA.
      losses: loss before each step; after a painting has stopped (`stop_after`), the one before the step it does not take.
      snapshots: images after every `save_every` steps, and the final image, before enlargement.
      latents: optimised parameters of the drawer, or their moving average: an array of latents, or a tree of arrays.
      codes: nearest or most likely codes of the VQGAN; None for other drawers.
      plan: memory plan of a step per device, from the compiler.
      micro_cuts, remat: micro-batch size and rematerialisation of a step.
      steps: number of steps taken.
    """

    images: UInt8[np.ndarray, "*n H W c"]
    losses: Float32[np.ndarray, "*n steps"]
    snapshots: UInt8[np.ndarray, "*n s _ _ c"]
    latents: Parameters
    codes: Int32[np.ndarray, "*n h w"] | None
    plan: MemoryPlan | None
    micro_cuts: int
    remat: bool
    steps: Int32[np.ndarray, "*n"]


class Job(NamedTuple):
    """A painting to compute: scene, seed and options."""

    scene: Scene
    seed: int
    options: Options


def paint(
    vq: Vqgan | None,
    clip: Clips,
    prompts: str | Sequence[str],
    *,
    seed: int | np.integer = 0,
    n: int | np.integer = 1,
    clip_weights: Sequence[float | int] | None = None,
    resume_from: str | Path | None = None,
    state_file: str | Path | None = None,
    progress: bool = True,
    preview: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
    **options,
) -> Painting:
    """Paints images from prompts (VQGAN+CLIP, arXiv 2204.08583), or with another drawer than a VQGAN's latents.

    Args:
      vq, clip: loaded models. The losses of several CLIPs are summed with `clip_weights`. With another drawer `vq` is None.
      prompts: a prompt, or a list of prompts that are painted in one batch; see `guided.prompts` for the grammar.
      seed: integer in [0, 2^32 - 1]. Results are deterministic for a seed and a device.
      n: number of images per prompt, with seeds `seed` to `seed + n - 1`. Images of a prompt are adjacent.
      clip_weights: weight of each CLIP; default: 1 / number of CLIPs.
      resume_from: state file of an unfinished painting, which is continued exactly to a total of `steps` steps.
      state_file: .npz file for (z, optimiser, average, step), written after every `save_every` steps.
      progress: whether to show a progress bar.
      preview: called after every `save_every` steps with `(steps done, uint8 [n, H, W, c], losses [n, steps done])`.
      options: see `guided.options.Options`.

    Raises PromptError for syntax errors of a prompt, ConfigError for invalid or contradictory options, BrokenSample for
    an unreadable image, and LoadError for a state file of another painting.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_request(seed, n, prompts)
    seed = int(seed)  # seed + n can overflow NumPy's small integers
    resolved = options_lib.resolve(options)
    jobs = [Job(parse_scene(prompt), seed + i, resolved) for prompt in prompts for i in range(n)]
    painter = Painter(vq, clip, jobs, clip_weights)
    identity = {}
    if resume_from is not None or state_file is not None:
        identity = resume.make_identity(vq, painter.clips, painter.prior, jobs, [float(w) for w in painter.clip_weights])
    state, past_losses = painter.state, np.zeros((len(jobs), 0), np.float32)
    if resume_from is not None:
        state, past_losses = resume.read_state(resume_from, identity, painter.state, resolved.schedule.steps)
    save = functools.partial(resume.write_state, state_file, identity) if state_file is not None else None
    return enlarge(vq, painter, painter.run(state, past_losses, progress, preview, save), progress)


def paint_many(
    vq: Vqgan | None,
    clip: Clips,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int | np.integer] = (0,),
    settings: Sequence[Mapping[str, float | int]] = ({},),
    clip_weights: Sequence[float | int] | None = None,
    at_once: int | np.integer | None = None,
    progress: bool = True,
    **options,
) -> Painting:
    """Paints every combination of prompts, seeds and settings in one batch, such as for an ablation.

    Args:
      settings: traced options (`guided.options.TRACED`) of each setting, in addition to the common `options`.
      at_once: largest number of paintings per batch; None: all.
      others: as in `paint`, which computes the same images one by one.

    Returns a Painting whose arrays have the leading axes [prompts, seeds, settings].
    """
    for seed in seeds:
        check_request(seed, 1, prompts)
    seeds = [int(seed) for seed in seeds]
    if not len(seeds) or not len(settings):
        raise ConfigError("seeds and settings must each have at least one entry")
    if at_once is not None and not (isinstance(at_once, int | np.integer) and at_once >= 1):
        raise ConfigError(f"at_once = {at_once!r}; it must be an integer of at least 1")
    for setting in settings:
        options_lib.refuse_unknown(setting, dict.fromkeys(options_lib.TRACED), "a traced option, as settings require")
    resolved = options_lib.resolve_many(options, settings)
    scenes = [parse_scene(prompt) for prompt in prompts]
    jobs = [Job(scene, seed, o) for scene in scenes for seed in seeds for o in resolved]
    batch_size = at_once or len(jobs)
    paintings, loaded = [], None
    for start in range(0, len(jobs), batch_size):
        painter = Painter(vq, clip, jobs[start : start + batch_size], clip_weights, loaded)
        loaded = painter.prior
        painting = painter.run(painter.state, np.zeros((len(painter.jobs), 0), np.float32), progress)
        paintings.append(enlarge(vq, painter, painting, progress))
    axes = (len(prompts), len(seeds), len(settings))

    def join(*parts: np.ndarray) -> np.ndarray:
        values = np.concatenate(parts)
        return values.reshape(*axes, *values.shape[1:])

    names = ("images", "losses", "snapshots", "latents", "codes", "steps")
    arrays = {name: jax.tree.map(join, *(getattr(painting, name) for painting in paintings)) for name in names}
    return dataclasses.replace(paintings[0], **arrays)


def check_request(seed: int | np.integer, n: int | np.integer, prompts: Sequence[str]) -> None:
    """Raises ConfigError for invalid seeds, numbers of images or empty prompts, TypeError if `prompts` is a string."""
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list, not a string: write [prompt]")
    if not len(prompts):
        raise ConfigError("prompts must contain at least one string")
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"n = {n!r} must be an integer of at least 1")
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= int(seed) <= 2**32 - n:
        raise ConfigError(f"seed = {seed!r} must be an integer in [0, 2^32 - 1], and so must seed + n - 1")


def enlarge(vq: Vqgan | None, painter: "Painter", painting: Painting, progress: bool) -> Painting:
    """Paints on at the larger size of the options, if there is one, from the enlarged pictures, over white if transparent.

    Scalable drawers show the same parameters at the larger size; others start from what they encode.

    The step counter continues, so that cutouts are new and weights of parts change further, while schedules stay at their
    ends. `init_weight` and `init_pixels` refer to the enlarged pictures. Snapshots are those of the smaller size.
    """
    if (options := painter.options.enlarge) is None:
        return painting
    size, done = (painter.size[0] * options.enlarge, painter.size[1] * options.enlarge), painting.losses.shape[1]
    state = painter.init_state(painting.latents)
    images = colour.flatten(painter.render_without_overlay(state._replace(step=state.step + done)), 1.0)
    images = enlargement.enlarge_images(images, size)
    if options.enlarge_tiles:
        return dataclasses.replace(painting, images=painter.reconstruct_in_tiles(images))
    jobs = [job._replace(options=enlargement.enlarge_options(job.options, size)) for job in painter.jobs]
    clip_weights, z = [float(w) for w in painter.clip_weights], painting.latents if painter.drawer.is_scalable else None
    larger = Painter(vq, painter.clips, jobs, clip_weights, images=images, parameters=z)
    larger.filters = filters.enlarge_cells(painter.filters, options.enlarge)
    larger_painting = larger.run(larger.state._replace(step=larger.state.step + done), painting.losses, progress)
    if options.enlarge_steps == 0:
        names = ("images", "latents", "codes")
        return dataclasses.replace(painting, **{name: getattr(larger_painting, name) for name in names})
    steps = painting.steps + options.enlarge_steps
    return dataclasses.replace(larger_painting, snapshots=painting.snapshots, steps=steps)


keys_from_seeds = jax.jit(jax.vmap(jax.random.key))


def make_drawer(vq: Vqgan | None, options: Options) -> Drawer:
    """Makes the drawer of a painting. Raises ConfigError for a VQGAN that is missing or superfluous."""
    if options.drawing is None:
        if vq is None:
            raise ConfigError("drawer = 'vqgan' needs a VQGAN: load one, or name another drawer")
        return VqganLatents(vq.module, options.latents.latents, vq)
    if vq is not None:
        raise ConfigError(f"drawer = {options.drawing.drawer!r} uses no VQGAN: leave it out (None)")
    return options.drawing.make()


def default_size(vq: Vqgan | None, clips: Sequence[Clip]) -> int:
    """Returns the side of the VQGAN's training images; without a VQGAN twice CLIP's, so that crops differ."""
    return vq.size if vq is not None else 2 * max(clip.preprocess.size for clip in clips)


class Painter:
    """Models, arrays on the devices and compiled programs for a batch of jobs, shared by `paint` and `animate`.

    Args:
      loaded: the prior of the options, if it is loaded already.
      images: start pictures of the jobs, instead of those of the options.
      parameters: what shows these pictures; None: they are encoded.
    """

    def __init__(
        self,
        vq: Vqgan | None,
        clip: Clips,
        jobs: Sequence[Job],
        clip_weights: Sequence[float | int] | None = None,
        loaded: prior.Prior | None = None,
        images: Float32[np.ndarray, "n H W 3"] | None = None,
        parameters: Parameters | None = None,
    ):
        self.images, self.parameters = images, parameters
        self.jobs, self.options = list(jobs), jobs[0].options
        settled = np.array([stopping.settled_step(job.scene, job.options) for job in self.jobs], np.int32)
        self.settled = settled if settled.any() else None
        self.clips = targets.to_clip_tuple(clip)
        self.clip_weights = targets.resolve_clip_weights(clip_weights, len(self.clips))
        self.drawer = make_drawer(vq, self.options)
        if self.options.enlarge is not None and self.options.enlarge.enlarge_tiles and self.drawer.is_scalable:
            shown = f"drawer = {self.options.drawing.drawer!r} shows the same at every size and encodes no tiles"
            raise ConfigError(f"enlarge_tiles = True: {shown}; leave it out")
        self.size = self.options.canvas.image_size(default_size(vq, self.clips), self.drawer.factor)
        sharpens = any(job.options.sharpen and job.options.sharpen.sharpen for job in self.jobs)
        self.filters = filters.make_filters(self.options, sharpens, self.size)
        self.tile = self.options.tile.tile if self.options.tile else (1, 1)
        self._check_cut_power()
        self.mesh = jax.tree.leaves((vq or self.clips[0]).variables)[0].sharding.mesh
        if vq is not None:
            at_once = self.options.enlarge is not None and not self.options.enlarge.enlarge_tiles
            factor = self.options.enlarge.enlarge if at_once else 1
            memory.check_decoder(vq, (factor * self.size[0], factor * self.size[1]), len(self.jobs), self.mesh)
        self.repeated_overlay = None
        if (repeated := self.options.repeated_overlay) is not None:
            overlay = starts.load_overlay(self.options.canvas.overlay, self.size, may_hide=True)
            self.repeated_overlay = overlay * np.array([1, 1, 1, repeated.overlay_alpha], np.float32)
        self.prior = loaded
        if loaded is None and self.options.prior is not None:
            self.prior = prior.load(self.options.prior.prior, vq, self.size)
        with jax.set_mesh(self.mesh):
            weights, prior_weights = jax.device_put(self.drawer.weights, NamedSharding(self.mesh, P())), None
            if self.prior is not None:
                is_straight = self.options.latents.latents == "straight"
                spacing = latents.code_spacing(weights.codebook) if is_straight else None
                prior_weights = prior.PriorWeights(self.prior.params, spacing)
                prior_weights = jax.device_put(prior_weights, NamedSharding(self.mesh, P()))
            network = None if self.options.style is None else style.load_network(self.options.style.style_network)
            network = jax.device_put(network, NamedSharding(self.mesh, P()))
            self.variables = trajectory.Variables(weights, tuple(c.variables for c in self.clips), prior_weights, network)
            self.problem = self._make_problem()
            self.state = self.init_state(self.problem.init_latents)
        self.steps: dict[int, memory.FittedProgram] = {}  # keyed by the number of steps

    def run(
        self,
        state: trajectory.State,
        past_losses: Float32[np.ndarray, "n done"],
        progress: bool,
        preview: Callable | None = None,
        save: Callable | None = None,
    ) -> Painting:
        """Runs the remaining steps. `past_losses` are the losses of the completed steps."""
        schedule, done = self.options.schedule, past_losses.shape[1]
        if self.repeated_overlay is not None:
            self.options.repeated_overlay.check_count(schedule.steps, "steps")
        losses, snapshots = [past_losses], []
        rendered = None
        with tqdm(total=schedule.steps, initial=done, unit="step", desc="paint", disable=not progress) as bar:
            while done < schedule.steps:
                length = min(schedule.save_every - done % schedule.save_every, schedule.steps - done)
                state, new_losses = self._advance_with_overlays(state, done, length)
                done += length
                losses.append(new_losses)
                rendered = self.render(state)
                snapshots.append(rendered[0])
                bar.update(length)
                bar.set_postfix(loss=f"{new_losses[:, -1].mean():.4f}")
                losses_so_far = np.concatenate(losses, axis=1)
                if save is not None:
                    save(state, losses_so_far)
                if preview is not None:
                    preview(done, rendered[0], losses_so_far)
                if (np.asarray(state.step) < done).all():  # all have stopped: nothing changes any more
                    count = -(-schedule.steps // schedule.save_every)
                    snapshots += [rendered[0]] * (count - -(-done // schedule.save_every))
                    losses.append(new_losses[:, -1:].repeat(schedule.steps - done, axis=1))
                    break
        images, codes, z = rendered or self.render(state)
        snapshots = np.stack(snapshots or [images], axis=1)
        step = next(iter(self.steps.values()), None)
        split = (step.plan, step.micro_cuts, step.remat) if step else (None, *self._explicit_split())
        return Painting(images, np.concatenate(losses, axis=1), snapshots, z, codes, *split, np.asarray(state.step))

    def advance(self, state: trajectory.State, length: int) -> tuple[trajectory.State, Float32[np.ndarray, "n length"]]:
        """Runs `length` steps. Raises FloatingPointError if a loss is not finite."""
        if length not in self.steps:
            self.steps[length] = self._compile(state, length)
        done = int(state.step[0])
        with jax.set_mesh(self.mesh):
            state, losses = self.steps[length].program(self.variables, self.problem, state)
        losses = np.asarray(losses)
        if not np.isfinite(losses).all():
            index, step = np.argwhere(~np.isfinite(losses))[0]
            raise FloatingPointError(
                f"painting {index}: the loss is {losses[index, step]} after {done + step} steps. Try a lower lr, or "
                "smaller weights of the prompt parts and of the additional losses"
            )
        return state, losses

    def _advance_with_overlays(
        self, state: trajectory.State, done: int, length: int
    ) -> tuple[trajectory.State, Float32[np.ndarray, "n length"]]:
        """Runs `length` steps after the first `done`, and lays the overlay over the pictures whenever that is due."""
        if self.repeated_overlay is None:
            return self.advance(state, length)
        every, end, losses = self.options.repeated_overlay.overlay_every, done + length, []
        while done < end:
            if self.options.repeated_overlay.is_due(done):
                images = self.lay_over(self.render_without_overlay(state))
                state = self.restart(state, self.encode(images, state.z))
            part = min(every - done % every, end - done)
            state, new_losses = self.advance(state, part)
            losses.append(new_losses)
            done += part
        return state, np.concatenate(losses, axis=1)

    def lay_over(self, images: Float32[np.ndarray, "n H W c"]) -> Float32[np.ndarray, "n H W 3"]:
        """Composites the repeated overlay over pictures, of which those with alpha are over white."""
        return np.stack([np.asarray(colour.cover(colour.flatten(image, 1.0), self.repeated_overlay)) for image in images])

    def restart(self, state: trajectory.State, latents: Parameters) -> trajectory.State:
        """Returns a state of other parameters, with a new state of the optimiser.

        The step counter continues, so that random cutouts are drawn anew.
        """
        return self.init_state(latents)._replace(step=state.step)

    def render(
        self, state: trajectory.State
    ) -> tuple[UInt8[np.ndarray, "n H W c"], Int32[np.ndarray, "n h w"] | None, Parameters]:
        """Renders a state to images, codes and parameters."""
        images, codes, z = self._render(state, self.problem.overlay, self.filters)
        return np.round(255 * images).astype(np.uint8), codes, z

    def render_without_overlay(self, state: trajectory.State) -> Float32[np.ndarray, "n H W c"]:
        """Renders a state to images in [0, 1] without the overlay, and not sharpened."""
        return self._render(state, None, self.filters._replace(sharpen=False))[0]

    def reconstruct_in_tiles(self, images: Float32[np.ndarray, "n H W 3"]) -> UInt8[np.ndarray, "n H W c"]:
        """Encodes and renders larger images in tiles of the painting's size; filters and overlay see the whole images."""

        def reconstruct(tiles):
            state = self.init_state(self.encode(tiles, self.problem.init_latents))
            return self._render(state._replace(step=state.step + self.options.schedule.steps), None, filters.Filters())[0]

        factor = images.shape[1] // self.size[0]
        images = enlargement.reconstruct_in_tiles(images, self.size, reconstruct)
        overlay = self.options.canvas.overlay if self.options.repeated_overlay is None else None
        sharpen = self.problem.hparams["sharpen"] if self.filters.sharpen else None
        active = filters.enlarge_cells(self.filters, factor)
        images = jax.jit(jax.vmap(functools.partial(filters.apply_filters, active)))(images, sharpen)
        if overlay is not None:
            images = jax.vmap(colour.cover, (0, None))(images, starts.load_overlay(overlay, images.shape[1:3]))
        return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)

    def encode(self, images: Float32[np.ndarray, "n H W 3"], z: Parameters) -> Parameters:
        """Returns parameters whose pictures are near `images`, such as the codes of a VQGAN. A fit starts from `z`."""
        with jax.set_mesh(self.mesh):
            return self.to_devices(self.drawer.encode(self.size, images, z))

    def init_state(self, init_latents: Parameters) -> trajectory.State:
        """Creates the state before the first step."""
        with jax.set_mesh(self.mesh):
            state = trajectory.init_state(self.options.optimization.optimizer, init_latents)
            if self.options.auto_stop is not None:
                state = state._replace(stopping=stopping.begin_stopping(state.step))
            return self.to_devices(state)

    def to_devices(self, tree: Any) -> Any:
        """Moves arrays to the devices, sharded over paintings if the devices divide their number, else replicated."""
        spec = P("batch") if len(self.jobs) % self.mesh.size == 0 else P()
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    # -----------------------------------------------------------------------------------------------------------------

    def _render(
        self, state: trajectory.State, overlay: jax.Array | None, active: filters.Filters
    ) -> tuple[np.ndarray, Any, Any]:
        render = trajectory.get_renderer(self.drawer.without_weights(), self.size, active)
        variables, state = self.variables._replace(clips=(), prior=None, style=None), state._replace(optimizer=None)
        with jax.set_mesh(self.mesh):
            return jax.tree.map(np.asarray, render(variables, self.problem.hparams, overlay, state))

    def _check_cut_power(self) -> None:
        """Raises ConfigError if `cut_power` has no effect."""
        crops = [job.options.crops for job in self.jobs]
        clip_size = min(clip.preprocess.size for clip in self.clips)
        if crops[0] is None or min(map(operator.mul, self.size, self.tile)) > clip_size or any(c.cut_min > 0 for c in crops):
            return
        power = next((c.cut_power for c in crops if c.cut_power != 1), 1)
        if power != 1:
            raise ConfigError(
                f"cut_power = {power:g}: an image of {self.size[0]} x {self.size[1]} is no larger than CLIP's "
                f"{clip_size} x {clip_size}, so every crop is the whole shorter side; set cut_min, such as 0.5"
            )

    def _explicit_split(self) -> tuple[int, bool]:
        """Returns the micro-batch size and `remat` set by the options."""
        return self.options.memory.micro_cuts or self.options.cutouts.cuts, self.options.memory.remat

    def _compile(self, state: trajectory.State, length: int) -> memory.FittedProgram:
        """Compiles the program of `length` steps, split to fit the memory budget."""
        cuts, budget = self.options.cutouts.cuts, self.options.memory.memory

        def compile_with(micro_cuts: int, remat: bool):
            programs = self._get_programs(micro_cuts, remat)
            if self.mesh.size > 1 and not programs.config.split:
                log.warning(
                    "neither %d painting(s) nor %d cutout(s) at a time divide over %d devices: each computes all",
                    len(self.jobs), micro_cuts, self.mesh.size,
                )  # fmt: skip
            return programs.compile(length, self.mesh, self.variables, self.problem, state)

        first_program = next(iter(self.steps.values()), None)
        if first_program is not None or budget is None:  # the first program determines the split
            split = (first_program.micro_cuts, first_program.remat) if first_program else self._explicit_split()
            program = compile_with(*split)
            fitted = memory.FittedProgram(program, *split, memory.memory_plan(program))
            memory.check_plan(fitted.plan, self.mesh)
            return fitted
        devices = self.mesh.size if len(self.jobs) % self.mesh.size else 1
        return memory.fit_to_budget(compile_with, cuts, devices, budget)

    def _get_programs(self, micro_cuts: int, remat: bool) -> trajectory.Programs:
        """Returns the programs for a micro-batch size and rematerialisation."""
        perceptors = tuple(
            trajectory.Perceptor(c.module, c.preprocess.size, tuple(c.preprocess.mean), tuple(c.preprocess.std))
            for c in self.clips
        )
        return trajectory.get_programs(perceptors, self._make_static_config(micro_cuts, remat))

    def _make_static_config(self, micro_cuts: int, remat: bool) -> trajectory.StaticConfig:
        """Derives the static configuration from options, jobs and devices."""
        o, hparams, devices = self.options, self._stack_hparams(), self.mesh.size
        terms = {name for name in trajectory.TERMS if name in hparams and np.any(hparams[name] != 0)}
        terms |= {name for name in ("palette", "aesthetic", "prior", "style") if getattr(o, name) is not None}
        split = ""
        if devices > 1:
            split = "paintings" if len(self.jobs) % devices == 0 else "cuts" if micro_cuts % devices == 0 else ""
        return trajectory.StaticConfig(
            self.drawer.without_weights(), self.size, o.optimization.optimizer, o.cutouts.cuts, o.cutouts.cut_method,
            augment.select_augmentations(hparams), frozenset(terms), micro_cuts, remat, split,
            None if self.prior is None else self.prior.module, self._load_custom_losses(),
            o.wide_cuts is not None, self.filters._replace(sharpen=False), self.tile,
        )  # fmt: skip

    def _load_custom_losses(self) -> tuple[Callable, ...]:
        """Loads the user's losses. Raises ConfigError if one does not return a number for each image."""
        losses = self.options.custom_losses.losses if self.options.custom_losses else ()
        functions = tuple(loss.load() for loss in losses)
        for loss, function in zip(losses, functions, strict=True):
            shape = getattr(jax.eval_shape(function, jax.ShapeDtypeStruct((2, *self.size, 3), jnp.float32)), "shape", None)
            if shape != (2,):
                raise ConfigError(
                    f"losses = {loss.name}: of images [2, {self.size[0]}, {self.size[1]}, 3] it returns "
                    f"{'no array' if shape is None else f'an array of shape {list(shape)}'}; it must return one number "
                    "for each image, shape [2]"
                )
        return functions

    def _stack_hparams(self) -> dict[str, Float32[np.ndarray, "n"]]:
        """Stacks the traced options of all jobs."""
        hparams = [job.options.hparams() for job in self.jobs]
        return {name: np.stack([values[name] for values in hparams]) for name in hparams[0]}

    def _make_problem(self) -> trajectory.Problem:
        """Embeds prompts, loads images, and moves the arrays of the objective to the devices."""
        o, n = self.options, len(self.jobs)
        target_vectors, weights, stops = targets.embed_scenes(self.clips, [job.scene for job in self.jobs])
        init_images, init_latents = self._make_starts()
        palette, border, aesthetic = o.palette, o.border, o.aesthetic
        overlay = o.canvas.overlay if o.repeated_overlay is None else None
        is_guided = o.prior is not None and any(job.options.prior.prior_guidance != 1 for job in self.jobs)

        def repeat(x):
            return np.broadcast_to(x, (n, *x.shape))

        problem = trajectory.Problem(
            key=keys_from_seeds(np.array([job.seed for job in self.jobs], np.uint32)),
            targets=target_vectors,
            weights=weights,
            stops=stops,
            clip_weights=repeat(self.clip_weights),
            hparams=self._stack_hparams(),
            init_latents=init_latents,
            init_images=init_images,
            overlay=None if overlay is None else repeat(starts.load_overlay(overlay, self.size)),
            palette=None
            if palette is None
            else repeat(np.stack([options_lib.parse_colour(c) for c in palette.palette])),
            border_colour=None if border is None else repeat(options_lib.parse_colour(border.edge_colour)),
            vignette_colour=None if o.vignette is None else repeat(options_lib.parse_colour(o.vignette.vignette_colour)),
            aesthetic_head=None
            if aesthetic is None
            else repeat(targets.load_aesthetic_head(aesthetic.aesthetic, self.clips[0])),
            prior_condition=None
            if o.prior is None
            else self.prior.encode([job.scene for job in self.jobs], o.prior.prior_text, is_guided),
            views=self._make_views(),
            keyframes=keyframes.make_keyframes([job.scene for job in self.jobs], o.schedule.steps),
            settled=self.settled,
            rate_drops=None if o.rate_drops is None else repeat(np.array(o.rate_drops.lr_drops, np.float32)),
            style=None
            if o.style is None
            else [repeat(x) for x in style.load_grams(o.style, self.size, self.variables.style, self.clips[0])],
            custom_weights=None
            if o.custom_losses is None
            else repeat(np.array([loss.weight for loss in o.custom_losses.losses], np.float32)),
        )
        return self.to_devices(problem)

    def _make_views(self) -> views.Views | None:
        """Makes the views of parts with places. Raises ConfigError for places beside tiles."""
        made = views.make_views([job.scene for job in self.jobs], self.size, self.options.aesthetic is not None)
        if made is not None and self.options.tile:
            raise ConfigError(
                f"tile = {self.tile[0]} x {self.tile[1]}: a part with a place sees it in one copy only; leave out the tile, "
                "or the places"
            )
        return made

    def _make_starts(self) -> tuple[Float32[np.ndarray, "n H W 3"], Parameters]:
        """Creates the initial images and parameters. Images are zero if parameters are random."""
        start, n = self.options.start, len(self.jobs)
        with jax.set_mesh(self.mesh):
            z = self.drawer.init(self.size, [job.seed for job in self.jobs])
        if self.images is not None:
            return self.images, self.encode(self.images, z) if self.parameters is None else self.to_devices(self.parameters)
        if start is None:
            return np.zeros((n, *self.size, 3), np.float32), self.to_devices(z)
        if start.init_image is not None:
            image = starts.load_image(start.init_image, self.size, "init_image")
            images = np.broadcast_to(image, (n, *image.shape))
        elif start.init_dalle is not None:
            scenes, seeds = zip(*((job.scene, job.seed) for job in self.jobs), strict=True)
            drawn = second_stages.draw_starts(self.options, self.clips[0], scenes, seeds)
            images = np.stack([starts.load_image(image, self.size, "init_dalle") for image in drawn])
        else:
            images = np.stack([starts.noise_image(start.init_noise, job.seed, self.size) for job in self.jobs])
        return images, self.encode(images, z)
