"""Stories and motion: the weights of each frame, the direction of motion, and the start of each frame."""

import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.errors import ConfigError
from vqgan_jax import guided
from vqgan_jax.guided import animation, augment
from vqgan_jax.guided.animation import Motion
from vqgan_jax.guided.prompts import PromptError, parse

# Without augmentations programs are smaller.
PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
# One program of one step, which the tests of this folder share for prompts of two parts.
FEW = PLAIN | {"steps": 1, "cuts": 8, "progress": False}
SCENE, STORY = "a red star | noise:-0.3", "a red star ^ a blue circle"
# Another program, of two steps, with an overlay and a pull to the start.
PULLED = FEW | {"steps": 2, "init_weight": 1e-6, "init_pixels": 1e-6}


def test_scenes_fade_over_their_last_frames():
    weights = animation.frame_weights(parse("a:2 | b:-1 ^ c"), frames=4, blend=2)
    t = np.array([0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1])
    np.testing.assert_allclose(weights, np.stack([2 * (1 - t), -1 * (1 - t), t], axis=1), atol=1e-6)
    np.testing.assert_allclose(animation.frame_weights(parse("a ^ b"), 2, 0), [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_the_direction_of_a_motion():
    # A dot's next position, in pixels from the middle of a picture that is not square.
    image = jnp.zeros((24, 48, 1)).at[6, 32].set(1.0)  # 8.5 right of and 5.5 above the middle

    def position(**how):
        moved = np.asarray(augment.warp(image, jnp.asarray(animation.frame_homography(Motion(**how), (24, 48)))))[..., 0]
        weights = moved / moved.sum()
        return (weights.sum(0) @ (np.arange(48) - 23.5), weights.sum(1) @ (np.arange(24) - 11.5))

    assert position(zoom=1.2) == pytest.approx((1.2 * 8.5, 1.2 * -5.5), abs=0.2)
    assert position(right=0.125, down=0.25) == pytest.approx((8.5 + 6, -5.5 + 6), abs=1e-3)
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))
    x, y = 8.5, 5.5  # upwards, in which angles are counter-clockwise
    assert position(turn=30.0) == pytest.approx((cos * x - sin * y, -(sin * x + cos * y)), abs=0.2)


def test_a_still_story_is_one_long_painting(vq, clip):
    # Without motion and with the same scene throughout, the frames are the snapshots of a painting.
    motion = Motion(frames=2, frame_steps=1)
    animated = guided.animate(vq, clip, SCENE, motion=motion, seed=2, **FEW)
    plain = guided.paint(vq, clip, SCENE, seed=2, **FEW | {"steps": 3, "save_every": 1})
    np.testing.assert_array_equal(animated.frames, plain.snapshots[0, 1:])
    np.testing.assert_allclose(animated.losses.ravel(), plain.losses[0, 1:], rtol=1e-6)


def test_every_frame_of_a_motion_starts_from_the_moved_picture(vq, clip):
    previews = []
    motion = Motion(frames=2, frame_steps=1, blend=1, zoom=1.3, turn=5.0)
    options = FEW | {"lr": 1e-6}  # the optimiser changes nothing
    animated = guided.animate(vq, clip, STORY, motion=motion, preview=lambda *now: previews.append(now), **options)
    assert animated.frames.shape == (4, 16, 16, 3) and animated.losses.shape == (4, 1)
    assert [index for index, _ in previews] == [0, 1, 2, 3]
    frame = animated.frames[0].astype(np.float32) / 255
    moved = np.asarray(animation._warp(frame, animation.frame_homography(motion, (16, 16))))
    expected = np.round(255 * vq.reconstruct(np.clip(moved, 0, 1)[None])[0]).astype(int)
    np.testing.assert_allclose(animated.frames[1].astype(int), expected, atol=1)
    np.testing.assert_array_equal(previews[3][1], animated.frames[3])


@pytest.fixture(scope="module")
def layer():
    """An overlay."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[6:10, 6:10] = (250, 10, 60, 255)
    return pixels


def test_an_overlay_stays_while_the_picture_moves(vq, clip, layer):
    start = {"lr": 1e-6, "init_image": np.full((16, 16, 3), 128, np.uint8)}  # the optimiser changes nothing
    bare = guided.animate(vq, clip, STORY, motion=Motion(frames=1, frame_steps=1, right=0.5), **FEW, **start)
    motion = Motion(frames=1, frame_steps=2, right=0.5)
    animated = guided.animate(vq, clip, STORY, motion=motion, overlay=layer, **PULLED, **start)
    is_covered = np.zeros((16, 16), bool)
    is_covered[6:10, 6:10] = True
    for frame, plain in zip(animated.frames, bare.frames, strict=True):
        assert (frame[is_covered] == (250, 10, 60)).all()
        np.testing.assert_array_equal(frame[~is_covered], plain[~is_covered])


def test_each_frame_is_pulled_to_its_own_start(vq, clip, layer):
    # At the first step of a frame its latents are its start's: the pull costs nothing there, and something later.
    options = PULLED | {"init_noise": "fractal", "overlay": layer}
    motion = Motion(frames=3, frame_steps=2, zoom=1.5)
    free, held = (
        guided.animate(vq, clip, "a red star | a circle", motion=motion, **options | {"init_weight": weight}).losses
        for weight in (1e-6, 50.0)
    )
    np.testing.assert_allclose(held[1, 0], free[1, 0], rtol=0.2)
    assert (held[1:, 1] - held[1:, 0] > 0.1).all()


@pytest.mark.parametrize(
    "how, message",
    [
        ({"frames": 0}, "frames = 0"),
        ({"frame_steps": 1.5}, "frame_steps = 1.5"),
        ({"zoom": 0.1}, r"zoom = 0.1; it must be a number in \[0.5, 2.0\]"),
        ({"turn": "left"}, "turn = 'left'"),
        ({"frames": 10, "blend": 10}, "blend = 10 must be less than frames = 10"),
    ],
)
def test_motions_out_of_range_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        Motion(**how)


def test_options_without_a_meaning_in_an_animation_are_refused(vq, clip):
    with pytest.raises(ConfigError, match="an animation has no last step"):
        guided.animate(vq, clip, "a", lr_decay=0.1, **FEW)
    with pytest.raises(ConfigError, match="save_every applies to paintings only"):
        guided.animate(vq, clip, "a", save_every=3, **FEW)
    with pytest.raises(ConfigError, match="blend = 2 needs two scenes or more"):
        guided.animate(vq, clip, "a", motion=Motion(frames=3, blend=2), **FEW)
    with pytest.raises(PromptError):
        guided.animate(vq, clip, "a ^", **FEW)


def test_a_short_scene_blends_as_long_as_it_can():
    assert Motion(frames=np.int64(3), zoom=np.float32(1.5)) == Motion(frames=3, zoom=1.5)
    assert [Motion(frames=frames).blend_frames for frames in (1, 5, 30)] == [0, 4, 10]
