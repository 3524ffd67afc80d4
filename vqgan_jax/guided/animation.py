"""Animations: every frame warps the previous image (zoom, rotation, shift) and optimises it further, scene by scene."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from train_jax.errors import ConfigError
from vqgan_jax.guided import augment, colour
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.painting import Clips, Job, Painter, check_request
from vqgan_jax.guided.prompts import Scene, parse
from vqgan_jax.vqgan import Vqgan


@typing.no_type_check  # __post_init__ checks the types and reports the allowed values
@dataclasses.dataclass(frozen=True)
class Motion:
    """Motion between consecutive frames of an animation. Raises ConfigError for invalid values.

    Attributes:
      frames: number of frames of each scene.
      frame_steps: optimisation steps per frame.
      blend: number of frames at the end of a scene that cross-fade to the prompt of the next scene; None: 10, or
        `frames - 1` for shorter scenes.
      zoom: magnification per frame.
      turn: rotation per frame in degrees, counter-clockwise.
      right, down: shift per frame, as a fraction of the image's width and height.
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
                raise ConfigError(f"{name} = {value!r}; it must be an integer of at least {low}")
        for name, low, high in (("zoom", 0.5, 2.0), ("turn", -180, 180), ("right", -1, 1), ("down", -1, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} = {value!r}; it must be a number in [{low}, {high}]")
        if self.blend is not None and self.blend >= self.frames:
            raise ConfigError(f"blend = {self.blend} must be less than frames = {self.frames}, the frames of a scene")

    @property
    def blend_frames(self) -> int:
        """Number of frames in which two scenes cross-fade."""
        return min(10, self.frames - 1) if self.blend is None else self.blend

    @property
    def is_still(self) -> bool:
        """Whether frames are not warped."""
        return (self.zoom, self.turn, self.right, self.down) == (1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Animation:
    """Frames of an animation, and the loss before each step of each frame.

    The `steps` steps before the first frame are not included.
    """

    frames: UInt8[np.ndarray, "f H W c"]
    losses: Float32[np.ndarray, "f steps"]


def animate(
    vq: Vqgan | None,
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
    """Paints an animation of the prompt's scenes, each of `motion.frames` frames.

    With motion, every frame starts from the codes (of other drawers, the parameters) of the warped previous image, over
    white if it is transparent, with a new optimiser state, and `init_weight` and `init_pixels` refer to this start. An
    overlay is not warped. Without motion, latents and optimiser state continue from frame to frame.

    Args:
      preview: called after every frame with `(frame index, uint8 [H, W, c])`.
      others: as in `paint`.

    Raises the errors of `paint`, and ConfigError for schedules over the steps (an animation has no last step), for
    `save_every` (every frame is a snapshot), and for `blend` with a single scene.
    """
    motion = motion or Motion()
    check_request(seed, 1, [prompt])
    resolved = options_lib.resolve(options)
    if resolved.rate_decay or (resolved.probabilities and resolved.probabilities.temperature_end):
        raise ConfigError("lr_decay and temperature_end are schedules over the steps: an animation has no last step")
    if resolved.enlarge is not None:
        raise ConfigError(f"enlarge = {resolved.enlarge.enlarge} applies to paintings only: set a larger size or scale")
    if "save_every" in options:
        raise ConfigError("save_every applies to paintings only: an animation returns frames; set frame_steps instead")
    scenes = parse(prompt)
    if motion.blend is not None and len(scenes) == 1:
        raise ConfigError(f"blend = {motion.blend} needs two scenes or more, and the prompt has one: write A ^ B")
    for part in (part for scene in scenes for part in scene if part.is_timed):
        raise ConfigError(f"the weight of {part.content!r} changes by steps: in an animation it changes by scenes, A ^ B")
    all_parts = tuple(part for scene in scenes for part in scene)
    painter = Painter(vq, clip, [Job(all_parts, seed, resolved)], clip_weights)
    # An infinite number of steps keeps the schedules at their initial values.
    hparams = painter.problem.hparams | {"steps": jnp.full_like(painter.problem.hparams["steps"], jnp.inf)}
    problem, state = painter.problem._replace(hparams=hparams), painter.state
    weights = frame_weights(scenes, motion.frames, motion.blend_frames)
    frames, losses = [], []
    homography = frame_homography(motion, painter.size)
    with tqdm(total=len(weights), unit="frame", desc="animate", disable=not progress) as bar:
        for index, row in enumerate(weights):
            painter.problem = problem._replace(weights=painter.to_devices(row[None]))
            if index == 0:
                state, _ = painter.advance(state, resolved.schedule.steps)
            elif not motion.is_still:
                image = _warp(painter.render_without_overlay(state)[0], homography)
                init_images = np.clip(np.asarray(colour.flatten(image, 1.0)), 0, 1)[None]
                init_latents = painter.encode(init_images, state.z)
                painter.problem = painter.problem._replace(
                    init_latents=init_latents, init_images=painter.to_devices(init_images)
                )
                # The step counter continues: random cutouts are drawn anew in every frame.
                state = painter.init_state(init_latents)._replace(step=state.step)
            state, frame_losses = painter.advance(state, motion.frame_steps)
            frames.append(painter.render(state)[0][0])
            losses.append(frame_losses[0])
            bar.update()
            bar.set_postfix(loss=f"{frame_losses[0, -1]:.4f}")
            if preview is not None:
                preview(index, frames[-1])
    return Animation(np.stack(frames), np.stack(losses))


def frame_weights(scenes: Sequence[Scene], frames: int, blend: int) -> Float32[np.ndarray, "f p"]:
    """Computes the weight of each prompt part in each frame. Scenes cross-fade over their last `blend` frames."""
    weights = []
    for scene_index in range(len(scenes)):
        for frame in range(frames):
            fade = max(0, frame - (frames - blend) + 1) / (blend + 1) if scene_index + 1 < len(scenes) else 0.0
            scene_weights = {scene_index: 1 - fade, scene_index + 1: fade}
            weights.append(
                [part.weight * scene_weights.get(i, 0.0) for i, scene in enumerate(scenes) for part in scene]
            )
    return np.asarray(weights, np.float32)


def frame_homography(motion: Motion, size: tuple[int, int]) -> Float32[np.ndarray, "3 3"]:
    """Computes the homography that maps positions of a frame to positions of the previous frame, for `augment.warp`.

    Coordinates are in [-1, 1] from the centre.
    """
    height, width = size
    angle = np.deg2rad(motion.turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # Normalised coordinates have different scales along x and y unless the image is square.
    scale = np.array([width, height], float)
    matrix = np.eye(3)
    matrix[:2, :2] = rotation * scale[None] / scale[:, None] / motion.zoom
    matrix[:2, 2] = -matrix[:2, :2] @ (2 * np.array([motion.right, motion.down]))
    return matrix.astype(np.float32)


@jax.jit
def _warp(image: Float[Any, "H W 3"], homography: Float[Any, "3 3"]):
    return augment.warp(image, homography)
