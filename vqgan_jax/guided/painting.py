"""The verbs `paint` and `paint_many`: prompts and options enter, pictures leave."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32, UInt8
from tqdm import tqdm

from clip_jax.clip import Clip
from train_jax.errors import ConfigError
from train_jax.profiling import MemoryPlan
from vqgan_jax.guided import augment, latents, memory, resume, starts, targets, trajectory
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.options import Options
from vqgan_jax.guided.prompts import Scene, single
from vqgan_jax.vqgan import Vqgan

log = logging.getLogger(__name__)

Clips = Clip | Sequence[Clip]


@dataclasses.dataclass(frozen=True)
class Painting:
    """Paintings, and how they came to be. `paint` has one leading axis, pictures; `paint_many` prompts, seeds, settings.

    Attributes:
      images: as they are at the end.
      losses: before each step.
      snapshots: pictures after every `save_every` steps, and at the end.
      latents: what was optimised, or its moving average.
      codes: of the VQGAN, nearest or likeliest.
      plan: memory of a step on each device, as the compiler plans it.
      micro_cuts, remat: how it was split to fit.
    """

    images: UInt8[np.ndarray, "*n H W 3"]
    losses: Float32[np.ndarray, "*n steps"]
    snapshots: UInt8[np.ndarray, "*n s H W 3"]
    latents: Float32[np.ndarray, "*n h w x"]
    codes: Int32[np.ndarray, "*n h w"]
    plan: MemoryPlan | None
    micro_cuts: int
    remat: bool


class Job(NamedTuple):
    """One painting."""

    scene: Scene
    seed: int
    options: Options


def paint(
    vq: Vqgan,
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
    """Paints prompts (VQGAN+CLIP, arXiv 2204.08583).

    Args:
      vq, clip: loaded models; several CLIPs see the picture together, each with its weight.
      prompts: of the grammar in `guided.prompts`; one, or a list, painted at once.
      seed: 0 to 2^32 - 1. The same seed gives the same picture on the same device.
      n: pictures of each prompt, with the seeds `seed` to `seed + n - 1`. Pictures of one prompt follow each other.
      clip_weights: one a CLIP; default: 1 / number of CLIPs.
      resume_from: a state file; its painting goes on, to `steps` steps in all, as if it had never stopped.
      state_file: an .npz to write (z, optimiser, average, step) to, after every `save_every` steps.
      progress: show a bar.
      preview: called after every `save_every` steps: `(steps done, uint8 [n, H, W, 3], losses [n, steps done])`.
      options: see `guided.options.Options`.

    Raises PromptError for a prompt that is not of the grammar, ConfigError for options that cannot be or are at odds,
    BrokenSample for a picture that cannot be read, LoadError for a state file of another painting.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    check(seed, n, listed)
    seed = int(seed)  # NumPy's small integers wrap around
    resolved = options_lib.resolve(options)
    jobs = [Job(single(prompt), seed + i, resolved) for prompt in listed for i in range(n)]
    painter = Painter(vq, clip, jobs, clip_weights)
    identity = resume.identity(vq, painter.clips, jobs, [float(w) for w in painter.eye_weights])
    state, begun = painter.state, np.zeros((len(jobs), 0), np.float32)
    if resume_from is not None:
        state, begun = resume.read(resume_from, identity, painter.state, resolved.steps)
    keep = functools.partial(resume.write, state_file, identity) if state_file is not None else None
    return painter.run(state, begun, progress, preview, keep)


def paint_many(
    vq: Vqgan,
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
    """Prompts x seeds x settings, painted at once by one program: an ablation in one run.

    Args:
      settings: each a few options of kind number (`guided.options.NUMBERS`), which differ from painting to painting.
      at_once: paintings that go together at most; None: all.
      others: as in `paint`, which gives the same pictures one by one.

    The arrays of the result begin with the axes [prompts, seeds, settings].
    """
    for seed in seeds:
        check(seed, 1, prompts)
    seeds = [int(seed) for seed in seeds]
    if not len(seeds) or not len(settings):
        raise ConfigError("seeds and settings must each have at least one entry")
    if at_once is not None and not (isinstance(at_once, int | np.integer) and at_once >= 1):
        raise ConfigError(f"at_once = {at_once!r}; it must be a whole number of at least 1")
    for setting in settings:
        options_lib.refuse_unknown(setting, dict.fromkeys(options_lib.NUMBERS), "number that may differ")
    resolved = options_lib.resolve_many(options, settings)
    scenes = [single(prompt) for prompt in prompts]
    jobs = [Job(scene, seed, o) for scene in scenes for seed in seeds for o in resolved]
    size = at_once or len(jobs)
    found = []
    for start in range(0, len(jobs), size):
        painter = Painter(vq, clip, jobs[start : start + size], clip_weights)
        found.append(painter.run(painter.state, np.zeros((len(painter.jobs), 0), np.float32), progress))
    lead = (len(prompts), len(seeds), len(settings))
    joined = {
        name: np.concatenate([getattr(p, name) for p in found]).reshape(*lead, *getattr(found[0], name).shape[1:])
        for name in ("images", "losses", "snapshots", "latents", "codes")
    }
    return dataclasses.replace(found[0], **joined)


def check(seed: int | np.integer, n: int | np.integer, prompts: Sequence[str]) -> None:
    """ConfigError for seeds and numbers of paintings that cannot be; TypeError for one text instead of a list."""
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list, not one text: write [text]")
    if not len(prompts):
        raise ConfigError("prompts must hold at least one text")
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"n = {n!r} must be a whole number of at least 1")
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= int(seed) <= 2**32 - n:
        raise ConfigError(f"seed = {seed!r} must be a whole number in [0, 2^32 - 1], that of the last picture, too")


_keys = jax.jit(jax.vmap(jax.random.key))


class Painter:
    """Models and jobs made ready: arrays on the devices, programs by structure. What `paint` and `animate` share."""

    def __init__(self, vq: Vqgan, clip: Clips, jobs: Sequence[Job], clip_weights: Sequence[float | int] | None = None):
        self.vq, self.jobs, self.options = vq, list(jobs), jobs[0].options
        self.clips = targets.several(clip)
        self.eye_weights = targets.shares(clip_weights, len(self.clips))
        self.size = options_lib.pixels(self.options, vq.size, vq.factor)
        self._cuts_differ()
        self.mesh = jax.tree.leaves(vq.variables)[0].sharding.mesh
        if self.options.latents == "straight" and latents.table(vq.module, vq.variables) is None:
            raise ConfigError("latents = 'straight' needs vectors of codes, and the dVAE has none: use 'soft' or 'gumbel'")
        memory.check_decoder(vq, self.size, len(self.jobs), self.mesh)
        with jax.set_mesh(self.mesh):
            points = latents.table(vq.module, vq.variables)
            self.variables = trajectory.Variables(vq.variables, points, tuple(c.variables for c in self.clips))
            self.problem = self._problem()
            self.state = self.begin(self.problem.first)
        self.fits: dict[int, memory.Fit] = {}

    def run(
        self,
        state: trajectory.State,
        begun: Float32[np.ndarray, "n done"],
        progress: bool,
        preview: Callable | None = None,
        keep: Callable | None = None,
    ) -> Painting:
        """The rest of the steps, of which `begun` are done."""
        o, done = self.options, begun.shape[1]
        losses, shots = [begun], []
        found = None
        with tqdm(total=o.steps, initial=done, unit="step", desc="paint", disable=not progress) as bar:
            while done < o.steps:
                length = min(o.save_every - done % o.save_every, o.steps - done)
                state, values = self.advance(state, length)
                done += length
                losses.append(values)
                found = self.picture(state)
                shots.append(found[0])
                bar.update(length)
                bar.set_postfix(loss=f"{values[:, -1].mean():.4f}")
                so_far = np.concatenate(losses, axis=1)
                if keep is not None:
                    keep(state, so_far)
                if preview is not None:
                    preview(done, found[0], so_far)
        images, codes, z = found or self.picture(state)
        snapshots = np.stack(shots or [images], axis=1)
        fit = next(iter(self.fits.values()), None)
        split = (fit.plan, fit.micro, fit.remat) if fit else (None, o.micro_cuts or o.cuts, o.remat)
        return Painting(images, np.concatenate(losses, axis=1), snapshots, z, codes, *split)

    def advance(self, state: trajectory.State, length: int) -> tuple[trajectory.State, Float32[np.ndarray, "n length"]]:
        """So many steps further. FloatingPointError where a loss is not finite: latents without a value show nothing."""
        if length not in self.fits:
            self.fits[length] = self._fitted(state, length)
        done = int(state.step[0])
        with jax.set_mesh(self.mesh):
            state, values = self.fits[length].program(self.variables, self.problem, state)
        values = np.asarray(values)
        if not np.isfinite(values).all():
            number, step = np.argwhere(~np.isfinite(values))[0]
            raise FloatingPointError(
                f"painting {number}: the loss is {values[number, step]} after {done + step} steps. Try a lower lr, or "
                "smaller weights of the prompt's parts and of what the picture should be like"
            )
        return state, values

    def picture(self, state: trajectory.State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(uint8 [n, H, W, 3], codes [n, h, w], latents)` of a state."""
        programs = self._programs(1, False)
        with jax.set_mesh(self.mesh):
            x, codes, z = programs.picture(self.variables, self.problem, state)
        return np.round(255 * np.asarray(x)).astype(np.uint8), np.asarray(codes), np.asarray(z)

    def bare(self, state: trajectory.State) -> Float32[np.ndarray, "n H W 3"]:
        """What `picture` shows without the overlay, in [0, 1]."""
        programs = self._programs(1, False, overlay=False)
        with jax.set_mesh(self.mesh):
            return np.asarray(programs.picture(self.variables, self.problem, state)[0])

    def first(self, codes: Int32[np.ndarray, "n h w"]) -> jax.Array:
        """Latents [n, h, w, x] that show codes, as the options say what latents are."""
        with jax.set_mesh(self.mesh):
            found = latents.begin(self.options.latents, codes, self.variables.points, self.vq.num_codes)
        return self.place(found)

    def begin(self, first: jax.Array) -> trajectory.State:
        """The state before the first step from these latents."""
        with jax.set_mesh(self.mesh):
            return self.place(trajectory.begin(self.options.optimizer, first))

    def place(self, tree: Any) -> Any:
        """On the devices: a painting to each where they divide, else copied."""
        split = P("batch") if len(self.jobs) % self.mesh.size == 0 else P()
        return jax.device_put(tree, NamedSharding(self.mesh, split))

    # -----------------------------------------------------------------------------------------------------------------

    def _cuts_differ(self) -> None:
        """ConfigError for a `cut_power` that sizes nothing."""
        each = [job.options for job in self.jobs]
        smallest = min(clip.preprocess.size for clip in self.clips)
        power = next((o.cut_power for o in each if o.cut_power != 1), 1)
        if power != 1 and min(self.size) <= smallest and all(o.cut_min == 0 for o in each):
            raise ConfigError(
                f"cut_power = {power:g}: a picture of {self.size[0]} x {self.size[1]} is no larger than CLIP's "
                f"{smallest} x {smallest}, so every cut is the whole shorter side; give cut_min, such as 0.5"
            )

    def _fitted(self, state: trajectory.State, length: int) -> memory.Fit:
        o = self.options

        def compile_with(micro: int, remat: bool):
            programs = self._programs(micro, remat)
            if self.mesh.size > 1 and not programs.structure.split:
                log.warning(
                    "neither %d painting(s) nor %d cut(s) at a time divide over %d devices: each device computes all",
                    len(self.jobs), micro, self.mesh.size,
                )  # fmt: skip
            return programs.compiled(length, self.mesh, self.variables, self.problem, state)

        earlier = next(iter(self.fits.values()), None)
        if earlier is not None or o.memory is None:  # how it is split is decided once
            micro, remat = (earlier.micro, earlier.remat) if earlier else (o.micro_cuts or o.cuts, o.remat)
            program = compile_with(micro, remat)
            fitted = memory.Fit(program, micro, remat, memory.memory_plan(program))
            memory.check_plan(fitted.plan, self.mesh)
            return fitted
        devices = self.mesh.size if len(self.jobs) % self.mesh.size else 1
        return memory.fit(compile_with, o.cuts, devices, o.memory)

    def _programs(self, micro: int, remat: bool, overlay: bool = True) -> trajectory.Programs:
        eyes = tuple(
            trajectory.Eye(c.module, c.preprocess.size, tuple(c.preprocess.mean), tuple(c.preprocess.std))
            for c in self.clips
        )
        structure = self._structure(micro, remat)
        return trajectory.programs(self.vq.module, eyes, structure._replace(overlay=structure.overlay and overlay))

    def _structure(self, micro: int, remat: bool) -> trajectory.Structure:
        o = self.options
        each = [job.options for job in self.jobs]
        numbers = {name: np.stack([x.numbers()[name] for x in each]) for name in each[0].numbers()}
        terms = {name for name in trajectory.TERMS if name in numbers and np.any(numbers[name] != 0)}
        terms |= {name for name in ("palette", "aesthetic") if getattr(o, name)}
        devices = self.mesh.size
        split = ""
        if devices > 1:
            split = "paintings" if len(each) % devices == 0 else "cuts" if micro % devices == 0 else ""
        return trajectory.Structure(
            self.size, o.latents, o.optimizer, o.cuts, o.cut_method, augment.kinds(numbers), frozenset(terms),
            o.overlay is not None, micro, remat, split,
        )  # fmt: skip

    def _problem(self) -> trajectory.Problem:
        o, n = self.options, len(self.jobs)
        vectors, weights, stops = targets.stacked(self.clips, [job.scene for job in self.jobs])
        start, codes = self._starts()
        each = [job.options.numbers() for job in self.jobs]
        overlay = np.zeros((1, 1, 4), np.float32) if o.overlay is None else starts.overlay(o.overlay, self.size)
        palette = np.stack([options_lib.rgb(c) for c in o.palette or ("black",)])
        head = targets.head(o.aesthetic, self.clips[0])

        def repeated(x):
            return np.broadcast_to(x, (n, *x.shape))

        problem = trajectory.Problem(
            key=_keys(np.array([job.seed for job in self.jobs], np.uint32)),
            targets=vectors,
            weights=weights,
            stops=stops,
            eyes=repeated(self.eye_weights),
            numbers={name: np.stack([x[name] for x in each]) for name in each[0]},
            first=self.first(codes),
            start=start,
            overlay=repeated(overlay),
            palette=repeated(palette),
            edge=repeated(options_lib.rgb(o.edge_colour)),
            head=repeated(head),
        )
        return self.place(problem)

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [n, H, W, 3] and codes [n, h, w] that the paintings begin from."""
        o, vq = self.options, self.vq
        cells = (self.size[0] // vq.factor, self.size[1] // vq.factor)
        if o.init_image is not None:
            image = starts.picture(o.init_image, self.size, "init_image")
            images = np.broadcast_to(image, (len(self.jobs), *image.shape))
        elif o.init_noise is not None:
            images = np.stack([starts.noise(o.init_noise, job.seed, self.size) for job in self.jobs])
        else:
            blank = np.zeros((len(self.jobs), *self.size, 3), np.float32)
            return blank, np.stack([starts.codes(job.seed, cells, vq.num_codes) for job in self.jobs])
        return images, vq.encode(images)
