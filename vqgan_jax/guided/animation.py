"""Animations: every frame warps the previous image (zoom, rotation, shift) and optimises it further, scene by scene."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from train_jax.errors import ConfigError
from vqgan_jax.guided import augment, colour, curves, sound, video
from vqgan_jax.guided import options as options_lib
from vqgan_jax.guided.painting import Clips, Job, Painter, check_request, default_size, make_drawer
from vqgan_jax.guided.prompts import Scene, parse
from vqgan_jax.guided.targets import to_clip_tuple
from vqgan_jax.vqgan import Vqgan

# Least and largest value of what may change in time.
_RANGES = {"zoom": (0.5, 2.0), "turn": (-180, 180), "right": (-1, 1), "down": (-1, 1)}


@typing.no_type_check  # __post_init__ checks the types and reports the allowed values
@dataclasses.dataclass(frozen=True)
class Motion:
    """Motion between consecutive frames of an animation. Raises ConfigError for invalid values.

    Attributes:
      frames: number of frames of each scene; None: 30, or with `video_in` as many as it has.
      frame_steps: optimisation steps per frame.
      blend: number of frames at the end of a scene that cross-fade to the prompt of the next scene; None: 10, or
        `frames - 1` for shorter scenes.
      zoom: magnification per frame: a number, keyframes "(0:1, 30:1.05)" of frames, or an expression "1.02+0.01*sin(t)"
        of the grammar of `guided.curves`. Frames are counted from 0 over all scenes.
      turn: rotation per frame in degrees, counter-clockwise; as zoom.
      right, down: shift per frame, as a fraction of the image's width and height; as zoom.
      loop: number of frames at the end that lead back to the first one, so that the video repeats without a jump; 0: none.
      video_in: path of a video, or of a folder of pictures, of which each is the start of a frame.
      pull: with `video_in`, weight of the pixels' squared distance to the previous painted frame.
      hold: with `video_in`, weight of the pixels' squared distance to its picture.
      sound: path of a .wav file, whose loudness at a frame, in [0, 1], expressions know as `sound`.
      fps: frames per second: of the time t in expressions, and at which `video_in` and `sound` are sampled; None: 15.
    """

    frames: int | None = None
    frame_steps: int = 10
    blend: int | None = None
    zoom: float | str = 1.0
    turn: float | str = 0.0
    right: float | str = 0.0
    down: float | str = 0.0
    loop: int = 0
    video_in: str | Path | None = None
    pull: float = 1.0
    hold: float = 0.0
    sound: str | Path | None = None
    fps: float | None = None

    def __post_init__(self):
        if self.frames is None and self.video_in is None:
            object.__setattr__(self, "frames", 30)
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name, low in (("frames", 1), ("frame_steps", 1), ("blend", 0), ("loop", 0)):
            value = getattr(self, name)
            if (value is not None or name not in ("frames", "blend")) and (type(value) is not int or value < low):
                raise ConfigError(f"{name} = {value!r}; it must be an integer of at least {low}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, str):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} = {value!r}; it must be a number in [{low}, {high}], or change in time")
        names = frozenset().union(*(curve.names for curve in self.changing.values()))
        if "sound" in names and self.sound is None:
            raise ConfigError("an expression of the motion contains sound: name the .wav file by sound")
        if self.fps is not None:
            video.check_fps(self.fps, "fps =")
        for name in ("blend", "loop") if self.frames is not None else ():
            value = getattr(self, name)
            if value is not None and value >= self.frames:
                raise ConfigError(f"{name} = {value} must be less than frames = {self.frames}, the frames of a scene")
        self._check_video_in()

    def _check_video_in(self) -> None:
        """Raises ConfigError for what means nothing with, or without, a video whose frames are starts."""
        for name, default in (("pull", 1.0), ("hold", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
                raise ConfigError(f"{name} = {value!r}; it must be a number of at least 0")
            if self.video_in is None and value != default:
                raise ConfigError(f"{name} = {value:g} has no effect without a video_in, whose frames are the starts")
        if self.video_in is None:
            return
        if not self.is_still:
            raise ConfigError("zoom, turn, right and down: a video_in has its own motion; leave them out")
        if self.loop:
            raise ConfigError(f"loop = {self.loop}: the frames of a video_in do not lead back to the first; leave it out")

    @property
    def blend_frames(self) -> int:
        """Number of frames in which two scenes cross-fade."""
        return min(10, self.frames - 1) if self.blend is None else self.blend

    @functools.cached_property
    def changing(self) -> dict[str, curves.Curve]:
        """Keyframes and expressions by the name of the attribute. Raises ConfigError for what is neither."""
        parsed = {}
        for name in _RANGES:
            if isinstance(text := getattr(self, name), str):
                try:
                    parsed[name] = curves.parse(text)
                except curves.CurveError as error:
                    raise ConfigError(f"{name} = {error}") from error
        return parsed

    def at(self, frame: int, loudness: float = 0.0) -> "Motion":
        """Returns the motion between the frame before and this one, of numbers only.

        Args:
          loudness: of the sound at this frame.

        Raises ConfigError for a number that is not finite, or out of range.
        """
        values = {}
        for name, curve in self.changing.items():
            try:
                values[name] = curve.at(frame, self.rate, loudness)
            except curves.CurveError as error:
                raise ConfigError(f"{name} = {error}") from error
            low, high = _RANGES[name]
            if not low <= values[name] <= high:
                raise ConfigError(
                    f"{name} = {curve.text!r} is {values[name]:g} at frame {frame}; it must be in [{low}, {high}]"
                )
        return dataclasses.replace(self, **values, fps=None) if values else self

    def with_frames(self, available: int, scenes: int) -> "Motion":
        """Returns the motion of an animation of the `available` pictures of `video_in`.

        Raises ConfigError if they are too few.
        """
        frames = self.frames or available // scenes
        if not frames or frames * scenes > available:
            needed = f"{frames} frames for each of them" if frames else "a frame for each of them"
            message = f"{available} frames for {scenes} scenes: {needed} are too many"
            raise ConfigError(f"video_in = {self.video_in} has {message}")
        return dataclasses.replace(self, frames=frames)

    def by_frame(self, scenes: int) -> list["Motion"]:
        """Returns the motion `at` each frame of an animation of this many scenes. Raises ConfigError as it does."""
        return [self.at(*frame) for frame in enumerate(self.loudness(scenes))]

    @property
    def rate(self) -> float:
        """Frames per second."""
        return float(video.FPS if self.fps is None else self.fps)

    def loudness(self, scenes: int) -> list[float]:
        """Returns the loudness of the sound at each frame, which is 0 without one. Raises UserError for other files."""
        count = self.frames * scenes
        return [0.0] * count if self.sound is None else sound.loudness(self.sound, self.rate, count).tolist()

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

    With motion, a frame starts from the codes (of other drawers, the parameters) of the warped previous image, over white
    if it is transparent, with a new optimiser state, and `init_weight` and `init_pixels` refer to this start. An overlay is
    not warped. Without motion, latents and optimiser state continue from the frame before. With `video_in`, each of its
    pictures is the start of a frame. With `loop`, the start of each of the last frames is mixed with the first frame, moved
    backwards so that it arrives in time, and the prompt fades to that of the first scene.

    Args:
      preview: called after every frame with `(frame index, uint8 [H, W, c])`.
      others: as in `paint`.

    Raises the errors of `paint`, and ConfigError for schedules over the steps (an animation has no last step), for
    `save_every` (every frame is a snapshot), and for `blend` with a single scene.
    """
    motion = motion or Motion()
    check_request(seed, 1, [prompt])
    scenes = parse(prompt)
    if motion.blend is not None and len(scenes) == 1:
        raise ConfigError(f"blend = {motion.blend} needs two scenes or more, and the prompt has one: write A ^ B")
    for part in (part for scene in scenes for part in scene if part.is_timed):
        remedy = "write an expression of the frame n, such as (1-n/30), or scenes, A ^ B"
        raise ConfigError(f"the weight of {part.content!r} changes by steps: in an animation {remedy}")
    source = None
    if motion.video_in is not None:
        options, source, motion = _start_from_video(vq, clip, motion, options, len(scenes))
    resolved = options_lib.resolve(options)
    has_schedule = resolved.rate_decay or resolved.rate_drops or resolved.auto_stop or resolved.prior
    if has_schedule or (resolved.probabilities and resolved.probabilities.temperature_end):
        names = "lr_decay, lr_drops, stop_after, temperature_end and the weight of a prior"
        raise ConfigError(f"{names} are schedules over the steps: an animation has no last step")
    if resolved.enlarge is not None:
        raise ConfigError(f"enlarge = {resolved.enlarge.enlarge} applies to paintings only: set a larger size or scale")
    if "save_every" in options:
        raise ConfigError("save_every applies to paintings only: an animation returns frames; set frame_steps instead")
    check_time(motion, scenes)
    motions = motion.by_frame(len(scenes))
    if resolved.repeated_overlay is not None:
        resolved.repeated_overlay.check_count(len(motions), "frames")
    all_parts = tuple(part for scene in scenes for part in scene)
    painter = Painter(vq, clip, [Job(all_parts, seed, resolved)], clip_weights)
    # An infinite number of steps keeps the schedules at their initial values.
    hparams = painter.problem.hparams | {"steps": jnp.full_like(painter.problem.hparams["steps"], jnp.inf)}
    problem, state = painter.problem._replace(hparams=hparams), painter.state
    weights = frame_weights(scenes, motion.frames, motion.blend_frames, motion.loop)
    weights = weights * expression_weights(scenes, motion)
    starts, frames, losses = _Starts(painter, motion, motions, source), [], []
    with tqdm(total=len(weights), unit="frame", desc="animate", disable=not progress) as bar:
        for index, row in enumerate(weights):
            problem = problem._replace(weights=painter.to_devices(row[None]))
            painter.problem = problem
            if index == 0:
                state, _ = painter.advance(state, resolved.schedule.steps)
            elif starts.begins_anew(index):
                image, target = starts.make(index, painter.render_without_overlay(state)[0])
                latents = painter.encode(image[None], state.z)
                painter.problem = problem = problem._replace(
                    init_latents=latents, init_images=painter.to_devices(target[None])
                )
                state = painter.restart(state, latents)
            state, frame_losses = painter.advance(state, motion.frame_steps)
            if index == 0:
                starts.first = painter.render_without_overlay(state)[0]
            frames.append(painter.render(state)[0][0])
            losses.append(frame_losses[0])
            bar.update()
            bar.set_postfix(loss=f"{frame_losses[0, -1]:.4f}")
            if preview is not None:
                preview(index, frames[-1])
    return Animation(np.stack(frames), np.stack(losses))


class _Starts:
    """Pictures from which the frames of an animation start.

    Attributes:
      painter: of one painting.
      motion: of the animation.
      motions: of each frame, of numbers only.
      source: uint8 pictures [f, H, W, 3] of `motion.video_in`, if there is one.
      first: the first frame [H, W, c] in [0, 1], when it is painted.
    """

    def __init__(self, painter: Painter, motion: Motion, motions: Sequence[Motion], source: np.ndarray | None):
        self.painter, self.motion, self.motions, self.source = painter, motion, motions, source
        self.homographies = [frame_homography(motion, painter.size) for motion in motions]
        self.first: np.ndarray | None = None

    def begins_anew(self, index: int) -> bool:
        """Returns whether a frame starts from another picture than the one before."""
        is_moved = self.source is not None or not self.motions[index].is_still
        return is_moved or self._is_overlaid(index) or self._loop_share(index) > 0

    def make(self, index: int, painted: Float32[np.ndarray, "H W c"]) -> tuple[np.ndarray, np.ndarray]:
        """Makes the picture from which a frame starts, and the one to which `init_pixels` pulls, both [H, W, 3] in [0, 1].

        Args:
          painted: the frame before.
        """
        if self.source is None:
            image = painted if self.motions[index].is_still else _warp(painted, self.homographies[index])
        else:
            image = self.source[index] / np.float32(255)
        if share := self._loop_share(index):
            image = (1 - share) * image + share * _warp(self.first, homography_to_first(self.homographies, index))
        if self._is_overlaid(index):
            image = self.painter.lay_over(np.asarray(image)[None])[0]
        image = np.clip(np.asarray(colour.flatten(image, 1.0)), 0, 1)
        pull, hold = self.motion.pull, self.motion.hold
        if self.source is None or pull + hold == 0:
            return image, image
        # The weighted sum of the distances to two pictures is, but for a constant, the distance to their mean.
        return image, (pull * colour.flatten(painted, 1.0) + hold * image) / np.float32(pull + hold)

    def _is_overlaid(self, index: int) -> bool:
        overlay = self.painter.options.repeated_overlay
        return overlay is not None and overlay.is_due(index)

    def _loop_share(self, index: int) -> float:
        """Returns the share of the first frame in the start of a frame, which grows to 1 at the frame after the last."""
        return max(0, index + 1 + self.motion.loop - len(self.motions)) / (self.motion.loop + 1)


def _start_from_video(
    vq: Vqgan | None, clips: Clips, motion: Motion, options: dict[str, Any], scenes: int
) -> tuple[dict[str, Any], UInt8[np.ndarray, "f H W 3"], Motion]:
    """Reads the pictures of `motion.video_in`. Returns the options of their painting, the pictures, and the motion."""
    resolved = options_lib.resolve(options)
    if resolved.start is not None:
        raise ConfigError("init_image, init_noise and init_dalle: the frames of a video_in are the starts; leave them out")
    factor = make_drawer(vq, resolved).factor
    size = resolved.canvas.image_size(default_size(vq, to_clip_tuple(clips)), factor)
    source = video.read(motion.video_in, size, motion.rate)
    options = options | {"init_image": source[0], "init_pixels": motion.pull + motion.hold}
    return options, source, motion.with_frames(len(source), scenes)


def check_time(motion: Motion, scenes: Sequence[Scene]) -> None:
    """Raises ConfigError for frames per second or a sound without effect, and for a sound that is missing."""
    expressions = [curves.parse(part.expression) for scene in scenes for part in scene if part.expression]
    names = frozenset().union(*(curve.names for curve in [*motion.changing.values(), *expressions]))
    if motion.sound is None and "sound" in names:
        raise ConfigError("an expression of the prompt contains sound: name the .wav file by sound")
    if motion.sound is not None and "sound" not in names:
        raise ConfigError(f"sound = {motion.sound} has no effect: no expression of motion or prompt contains sound")
    if motion.fps is not None and motion.video_in is None and not names & {"t", "sound"}:
        raise ConfigError(f"fps = {motion.fps:g} has no effect: no expression of motion or prompt contains t or sound")


def expression_weights(scenes: Sequence[Scene], motion: Motion) -> Float32[np.ndarray, "f p"]:
    """Computes the expressions of prompt parts at each frame; 1 for parts without one.

    Raises ConfigError for a value that is not finite.
    """
    parts = [part for scene in scenes for part in scene]
    weights = np.ones((motion.frames * len(scenes), len(parts)), np.float32)
    loudness = motion.loudness(len(scenes)) if any(part.expression for part in parts) else []
    for column, part in enumerate(parts):
        if part.expression:
            curve = curves.parse(part.expression)
            try:
                weights[:, column] = [curve.at(f, motion.rate, x) for f, x in enumerate(loudness)]
            except curves.CurveError as error:
                raise ConfigError(f"the weight of {part.content!r}: {error}") from error
    return weights


def frame_weights(scenes: Sequence[Scene], frames: int, blend: int, loop: int = 0) -> Float32[np.ndarray, "f p"]:
    """Computes the weight of each prompt part in each frame.

    Scenes cross-fade over their last `blend` frames; the last one, over its last `loop` frames, to the first.
    """
    weights = []
    for scene_index in range(len(scenes)):
        is_last = scene_index + 1 == len(scenes)
        fading = loop if is_last else blend
        for frame in range(frames):
            fade = max(0, frame - (frames - fading) + 1) / (fading + 1)
            scene_weights = dict.fromkeys(range(len(scenes)), 0.0)
            scene_weights[scene_index] += 1 - fade
            scene_weights[(scene_index + 1) % len(scenes)] += fade
            weights.append([part.weight * scene_weights[i] for i, scene in enumerate(scenes) for part in scene])
    return np.asarray(weights, np.float32)


def homography_to_first(homographies: Sequence[Float32[np.ndarray, "3 3"]], index: int) -> Float32[np.ndarray, "3 3"]:
    """Computes the homography by which `augment.warp` moves the first frame backwards to a frame.

    The motions after that frame, and that of the first frame last, lead from there to the first frame.
    """
    forwards = functools.reduce(np.matmul, [*homographies[index + 1 :], homographies[0]])
    return np.linalg.inv(forwards).astype(np.float32)


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
