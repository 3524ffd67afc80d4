"""Animations: a picture that zooms, turns or moves and is painted on in every frame; scenes that follow each other."""

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
from vqgan_jax.guided import augment
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.painting import Clips, Job, Painter, check_request
from vqgan_jax.guided.prompts import Scene, parse
from vqgan_jax.vqgan import Vqgan


@typing.no_type_check  # values of any type arrive here, to be refused with what is allowed
@dataclasses.dataclass(frozen=True)
class Motion:
    """The motion from frame to frame. Raises ConfigError for values that cannot be.

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
        """The number of frames in which two scenes blend."""
        return min(10, self.frames - 1) if self.blend is None else self.blend

    @property
    def still(self) -> bool:
        return (self.zoom, self.turn, self.right, self.down) == (1, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Animation:
    """Frames, and the losses before each step of each. `steps` steps, which are not shown, precede the first frame."""

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
    """Paints scenes one after the other, each of `motion.frames` frames; arguments as in `paint`.

    With motion, every frame starts from the codes of the moved picture and from a new optimiser state, and `init_weight`
    and `init_pixels` refer to this start; an overlay does not move. Without motion, latents and optimiser state go on.

    Args:
      preview: called after every frame: `(its index, uint8 [H, W, 3])`.

    Raises as `paint`, and ConfigError for schedules over the steps, since an animation has no last step, for `save_every`,
    since its frames are its snapshots, and for a blend of a single scene.
    """
    motion = motion or Motion()
    check_request(seed, 1, [prompt])
    resolved = options_lib.resolve(options)
    if resolved.rate_decay or (resolved.probabilities and resolved.probabilities.temperature_end):
        raise ConfigError("lr_decay and temperature_end are schedules over a painting's steps: an animation has no last one")
    if "save_every" in options:
        raise ConfigError("save_every is of a painting's snapshots: an animation gives its frames; set frame_steps instead")
    scenes = parse(prompt)
    if motion.blend is not None and len(scenes) == 1:
        raise ConfigError(f"blend = {motion.blend} is of scenes that follow each other, and the prompt has one: write A ^ B")
    parts = tuple(part for scene in scenes for part in scene)
    painter = Painter(vq, clip, [Job(parts, seed, resolved)], clip_weights)
    # Without a last step the schedules keep their first values.
    hparams = painter.problem.hparams | {"steps": jnp.full_like(painter.problem.hparams["steps"], jnp.inf)}
    problem, state = painter.problem._replace(hparams=hparams), painter.state
    weights = frame_weights(scenes, motion.frames, motion.overlap)
    frames, losses = [], []
    homography = frame_homography(motion, painter.size)
    with tqdm(total=len(weights), unit="frame", desc="animate", disable=not progress) as bar:
        for index, row in enumerate(weights):
            painter.problem = problem._replace(weights=painter.to_devices(row[None]))
            if index == 0:
                state, _ = painter.advance(state, resolved.schedule.steps)
            elif not motion.still:
                image = _warp(painter.render_without_overlay(state)[0], homography)
                init_images = np.clip(np.asarray(image), 0, 1)[None]
                init_latents = painter.latents_from_codes(vq.encode(init_images))
                painter.problem = painter.problem._replace(
                    init_latents=init_latents, init_images=painter.to_devices(init_images)
                )
                # Steps are counted on, so that every frame has random cuts of its own.
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
    """Weights of all scenes' parts in each frame; over its last `blend` frames a scene fades into the next one."""
    rows = []
    for scene_index in range(len(scenes)):
        for frame in range(frames):
            fade = max(0, frame - (frames - blend) + 1) / (blend + 1) if scene_index + 1 < len(scenes) else 0.0
            shares = {scene_index: 1 - fade, scene_index + 1: fade}
            rows.append([part.weight * shares.get(i, 0.0) for i, scene in enumerate(scenes) for part in scene])
    return np.asarray(rows, np.float32)


def frame_homography(motion: Motion, size: tuple[int, int]) -> Float32[np.ndarray, "3 3"]:
    """The homography from a frame to the frame before it, both in [-1, 1] from the centre, for `augment.warp`."""
    height, width = size
    angle = np.deg2rad(motion.turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # In [-1, 1] the axes of a picture that is not square have different lengths.
    stretch = np.array([width, height], float)
    matrix = np.eye(3)
    matrix[:2, :2] = rotation * stretch[None] / stretch[:, None] / motion.zoom
    matrix[:2, 2] = -matrix[:2, :2] @ (2 * np.array([motion.right, motion.down]))
    return matrix.astype(np.float32)


@jax.jit
def _warp(image: Float[Any, "H W 3"], homography: Float[Any, "3 3"]):
    return augment.warp(image, homography)
