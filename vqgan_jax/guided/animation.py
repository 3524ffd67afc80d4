"""Animations: a picture that zooms, turns or moves and is painted a little further in every frame; a story of scenes."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from train_jax.errors import ConfigError
from vqgan_jax.guided import augment
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.painting import Clips, Job, Painter, check
from vqgan_jax.guided.prompts import Scene, parse
from vqgan_jax.vqgan import Vqgan


@typing.no_type_check  # values of any type arrive here, to be refused with what is allowed
@dataclasses.dataclass(frozen=True)
class Motion:
    """How a picture moves from frame to frame. Raises ConfigError for what cannot be.

    Attributes:
      frames: of each scene.
      frame_steps: steps of the optimiser in a frame.
      blend: frames at the end of a scene in which its prompt gives way to the next one's; None: ten, if there is a next
        one and the scene is longer.
      zoom: size of things, relative to the frame before.
      turn: degrees, counter-clockwise.
      right, down: shares of the picture's width and height.
    """

    frames: int = 30
    frame_steps: int = 10
    blend: int | None = None
    zoom: float = 1.0
    turn: float = 0.0
    right: float = 0.0
    down: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name, low in (("frames", 1), ("frame_steps", 1), ("blend", 0)):
            value = getattr(self, name)
            if (name, value) != ("blend", None) and (type(value) is not int or value < low):
                raise ConfigError(f"{name} = {value!r}; it must be a whole number of at least {low}")
        for name, low, high in (("zoom", 0.5, 2.0), ("turn", -180, 180), ("right", -1, 1), ("down", -1, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} = {value!r}; it must be a number in [{low}, {high}]")
        if self.blend is not None and self.blend >= self.frames:
            raise ConfigError(f"blend = {self.blend} must be less than frames = {self.frames}, those of a scene")

    @property
    def overlap(self) -> int:
        """Frames in which scenes blend."""
        return min(10, self.frames - 1) if self.blend is None else self.blend

    @property
    def still(self) -> bool:
        return (self.zoom, self.turn, self.right, self.down) == (1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Animation:
    """Frames, and the losses before each step of each. The first frame follows `steps` steps that are not shown."""

    frames: UInt8[np.ndarray, "f H W 3"]
    losses: Float32[np.ndarray, "f steps"]


def animate(
    vq: Vqgan,
    clip: Clips,
    prompt: str,
    *,
    motion: Motion | None = None,
    seed: int | np.integer = 0,
    clip_weights: Sequence[float | int] | None = None,
    progress: bool = True,
    preview: Callable[[int, np.ndarray], None] | None = None,
    **options,
) -> Animation:
    """Scenes one after the other, each of `motion.frames` frames; arguments as in `paint`.

    Where the picture moves, every frame starts from the codes of the moved picture and from a fresh optimiser, and
    `init_weight` and `init_pixels` pull to this start of its own; an overlay stays where it is. Where the picture stands
    still, latents and optimiser go on. `preview` is called after every frame: `(its number, uint8 [H, W, 3])`.

    Raises as `paint`, and ConfigError for schedules over the steps, of which an animation knows no last, for snapshots,
    which are its frames, and for a blend of a single scene.
    """
    motion = motion or Motion()
    check(seed, 1, [prompt])
    resolved = options_lib.resolve(options)
    if resolved.lr_decay != 1 or resolved.temperature_end:
        raise ConfigError("lr_decay and temperature_end are schedules over a painting's steps: an animation has no last one")
    if "save_every" in options:
        raise ConfigError("save_every is of a painting's snapshots: an animation gives its frames; set frame_steps instead")
    scenes = parse(prompt)
    if motion.blend is not None and len(scenes) == 1:
        raise ConfigError(f"blend = {motion.blend} is of scenes that follow each other, and the prompt has one: write A ^ B")
    every = tuple(part for scene in scenes for part in scene)
    painter = Painter(vq, clip, [Job(every, seed, resolved)], clip_weights)
    # Without a last step the schedules stay where they begin.
    numbers = painter.problem.numbers | {"steps": jnp.full_like(painter.problem.numbers["steps"], jnp.inf)}
    problem, state = painter.problem._replace(numbers=numbers), painter.state
    schedule = weights(scenes, motion.frames, motion.overlap)
    frames, losses = [], []
    move = functools.partial(_moved, matrix=matrix(motion, painter.size))
    with tqdm(total=len(schedule), unit="frame", desc="animate", disable=not progress) as bar:
        for number, row in enumerate(schedule):
            painter.problem = problem._replace(weights=painter.place(row[None]))
            if number == 0:
                state, _ = painter.advance(state, resolved.steps)
            elif not motion.still:
                start = np.clip(np.asarray(move(painter.bare(state)[0])), 0, 1)[None]
                first = painter.first(vq.encode(start))
                painter.problem = painter.problem._replace(first=first, start=painter.place(start))
                # Steps are counted on, so that a frame draws cuts that no other has seen.
                state = painter.begin(first)._replace(step=state.step)
            state, values = painter.advance(state, motion.frame_steps)
            frames.append(painter.picture(state)[0][0])
            losses.append(values[0])
            bar.update()
            bar.set_postfix(loss=f"{values[0, -1]:.4f}")
            if preview is not None:
                preview(number, frames[-1])
    return Animation(np.stack(frames), np.stack(losses))


def weights(scenes: Sequence[Scene], frames: int, blend: int) -> Float32[np.ndarray, "f p"]:
    """Weights of all scenes' parts in each frame: a scene's own, with the next one's coming in over its last frames."""
    rows = []
    for number in range(len(scenes)):
        for frame in range(frames):
            share = max(0, frame - (frames - blend) + 1) / (blend + 1) if number + 1 < len(scenes) else 0.0
            present = {number: 1 - share, number + 1: share}
            rows.append([part.weight * present.get(i, 0.0) for i, scene in enumerate(scenes) for part in scene])
    return np.asarray(rows, np.float32)


def matrix(motion: Motion, size: tuple[int, int]) -> Float32[np.ndarray, "3 3"]:
    """Where a place of a frame lies in the frame before it, both in [-1, 1] from the middle, as `augment.warp` reads it."""
    height, width = size
    angle = np.deg2rad(motion.turn)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # In [-1, 1] the axes of a picture that is not square are of different lengths.
    stretch = np.array([width, height], float)
    found = np.eye(3)
    found[:2, :2] = turn * stretch[None] / stretch[:, None] / motion.zoom
    found[:2, 2] = -found[:2, :2] @ (2 * np.array([motion.right, motion.down]))
    return found.astype(np.float32)


@jax.jit
def _moved(image: Float[Any, "H W 3"], matrix: Float[Any, "3 3"]):
    return augment.warp(image, matrix)
