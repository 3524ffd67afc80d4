"""Stories and motion: the weights of each frame, the direction of motion, and the start of each frame."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from train_jax.errors import ConfigError, UserError
from vqgan_jax import guided
from vqgan_jax.guided import animation, augment, sound
from vqgan_jax.guided.animation import Motion
from vqgan_jax.guided.prompts import PromptError, parse

# Without augmentations programs are smaller.
PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
# One program of one step, which the tests of this folder share for prompts of two parts.
FEW = PLAIN | {"steps": 1, "cuts": 8, "progress": False}
SCENE, STORY = "a red star | noise:-0.3", "a red star ^ a blue circle"
# Another program, of two steps, with an overlay and a pull to the start.
PULLED = FEW | {"steps": 2, "init_weight": 1e-6, "init_pixels": 1e-6}


# A drawer whose pictures are its parameters: a frame is its start where the optimiser changes nothing.
PIXELS = PLAIN | {"drawer": "pixel", "size": (12, 16), "steps": 1, "cuts": 4, "lr": 1e-6, "progress": False}


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
    motion = Motion(frames=2, frame_steps=1, blend=1, zoom="(0:1, 1:1.3)", turn="5*t*t", fps=1)
    options = FEW | {"lr": 1e-6}  # the optimiser changes nothing
    animated = guided.animate(vq, clip, STORY, motion=motion, preview=lambda *now: previews.append(now), **options)
    assert animated.frames.shape == (4, 16, 16, 3) and animated.losses.shape == (4, 1)
    assert [index for index, _ in previews] == [0, 1, 2, 3]
    frame = animated.frames[0].astype(np.float32) / 255
    moved = np.asarray(animation._warp(frame, animation.frame_homography(Motion(zoom=1.3, turn=5.0), (16, 16))))
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
        ({"turn": "left"}, "turn = 'left', character 1 .*: 'left' is not a name; allowed are numbers, t, n"),
        ({"zoom": "sound"}, "contains sound: name the .wav file by sound"),
        ({"frames": 3, "loop": 3}, "loop = 3 must be less than frames = 3"),
        ({"pull": 2.0}, "pull = 2 has no effect without a video_in"),
        ({"video_in": "a.mp4", "hold": -1.0}, "hold = -1.0; it must be a number of at least 0"),
        ({"video_in": "a.mp4", "zoom": 1.1}, "a video_in has its own motion"),
        ({"video_in": "a.mp4", "loop": 2}, "do not lead back to the first"),
        ({"turn": "t", "fps": 0}, "fps = 0: frames per second must be"),
        ({"frames": 10, "blend": 10}, "blend = 10 must be less than frames = 10"),
    ],
)
def test_motions_out_of_range_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        Motion(**how)


def test_the_motion_of_each_frame():
    motion = Motion(frames=2, zoom="1+0.1*n", turn="(1:0, 3:10)", right="t/10", fps=2)
    assert [(m.zoom, m.turn, m.right, m.down) for m in motion.by_frame(2)] == [
        (1.0, 0.0, 0.0, 0.0), (1.1, 0.0, 0.05, 0.0), (1.2, 5.0, 0.1, 0.0), (1.3, 10.0, 1.5 / 10, 0.0),
    ]  # fmt: skip
    assert [m.is_still for m in motion.by_frame(1)] == [True, False]
    with pytest.raises(ConfigError, match=r"zoom = '1\+n' is 3 at frame 2; it must be in \[0.5, 2.0\]"):
        Motion(frames=3, zoom="1+n").by_frame(1)
    with pytest.raises(ConfigError, match="down = '1/n' has no value at frame 0: float division by zero"):
        Motion(down="1/n").by_frame(1)


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(3).integers(40, 216, (12, 16, 3), np.uint8)


def move_right(image, pixels):
    """Moves a picture by whole pixels, with repeated borders."""
    return image[:, np.clip(np.arange(image.shape[1]) - pixels, 0, image.shape[1] - 1)]


def test_the_last_frames_of_a_loop_lead_to_the_first(clip, picture):
    weights = animation.frame_weights(parse("a:2 ^ b"), frames=3, blend=1, loop=2)
    fades = [0, 0, 1 / 2, 1, 2 / 3, 1 / 3]
    np.testing.assert_allclose(weights, np.stack([2 * (1 - np.array(fades)), fades], axis=1), atol=1e-6)
    motion = Motion(frames=5, frame_steps=1, loop=3, right=2 / 16)
    frames = guided.animate(None, clip, SCENE, motion=motion, **PIXELS, init_image=picture).frames.astype(float)
    expected = [picture.astype(float)]
    for index in range(1, 5):
        share = max(0, index - 1) / 4  # the first frame, 5 - index moves back, grows over the last three frames
        expected.append((1 - share) * move_right(expected[-1], 2) + share * move_right(picture, -2 * (5 - index)))
    np.testing.assert_allclose(frames, expected, atol=1.5)
    # The move after the last frame leads to the first one, but for what the borders have lost.
    jump = np.abs(move_right(frames[-1], 2) - frames[0])[:, 10:14].mean()
    assert jump < 0.3 * np.abs(move_right(frames[1], 2) - frames[0])[:, 10:14].mean()


def test_an_overlay_is_laid_over_every_few_frames(clip, picture):
    layer = np.dstack([255 - picture, np.full((12, 16), 255, np.uint8)])
    repeated = {"overlay": layer, "overlay_every": 2, "overlay_until": 3, "overlay_alpha": 0.25}
    motion = Motion(frames=5, frame_steps=1, right=2 / 16)
    options = PIXELS | {"init_image": picture}
    frames = guided.animate(None, clip, SCENE, motion=motion, **options, **repeated).frames.astype(float)
    expected = [picture.astype(float)]
    for index in range(1, 5):
        expected.append(move_right(expected[-1], 2))
        if index == 2:
            expected[-1] = 0.75 * expected[-1] + 0.25 * layer[..., :3]
    np.testing.assert_allclose(frames, expected, atol=1.5)
    # Without motion, and in a painting, whose steps count; a picture is not its own overlay.
    still = guided.animate(None, clip, SCENE, motion=Motion(frames=4, frame_steps=1), **options, **repeated).frames
    mixed = 0.75 * picture + 0.25 * layer[..., :3]
    np.testing.assert_allclose(still, [picture, picture, mixed, mixed], atol=1.5)
    painted = guided.paint(None, clip, SCENE, **options | {"steps": 5, "save_every": 1}, **repeated)
    np.testing.assert_allclose(painted.snapshots[0], [picture, picture, mixed, mixed, mixed], atol=1.5)
    assert painted.losses.shape == (1, 5)


def test_a_video_is_painted_frame_by_frame(clip, picture, tmp_path):
    pictures = [picture, 255 - picture, picture[::-1]]
    for index, frame in enumerate(pictures):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    motion = Motion(video_in=str(tmp_path), frame_steps=1)
    frames = guided.animate(None, clip, SCENE, motion=motion, **PIXELS).frames
    np.testing.assert_allclose(frames.astype(int), pictures, atol=1)
    # A pull is a step from the start towards the frame painted before.
    options = PIXELS | {"optimizer": "sgd", "lr": 200.0}
    motions = (Motion(video_in=str(tmp_path), frame_steps=1, pull=a, hold=b) for a, b in ((0.0, 1e-3), (1.0, 0.5)))
    held, pulled = (guided.animate(None, clip, "noise=1:1e-6", motion=how, **options).frames for how in motions)
    np.testing.assert_allclose(held.astype(int), pictures, atol=1)
    towards = (pulled[1].astype(float) - pictures[1]) * (pulled[0].astype(float) - pictures[1])
    assert (towards >= 0).all() and towards.mean() > 100
    with pytest.raises(ConfigError, match="has 3 frames for 2 scenes: 2 frames for each of them are too many"):
        guided.animate(None, clip, STORY, motion=Motion(video_in=str(tmp_path), frames=2), **PIXELS)


def test_a_sound_drives_motion_and_weights(tmp_path):
    # Four frames of 100 samples: silence, a square wave, twice as loud on one of two channels, and half a frame of it.
    wave = np.zeros((350, 2), np.int16)
    wave[100:200] = 1000 * (-1) ** np.arange(100)[:, None]
    wave[200:, 0] = 2000
    wavfile.write(tmp_path / "a.wav", 1000, wave)
    expected = np.array([0, 1000, np.sqrt(2) * 1000, np.sqrt(2) * 1000, 0, 0]) / (np.sqrt(2) * 1000)
    np.testing.assert_allclose(sound.loudness(tmp_path / "a.wav", 10, 6), expected, rtol=1e-12)
    wavfile.write(tmp_path / "b.wav", 1000, (wave[:, 0] / 250 + 128).astype(np.uint8))
    np.testing.assert_allclose(sound.loudness(tmp_path / "b.wav", 10, 4), [0, 0.5, 1, 1], rtol=1e-12)
    motion = Motion(frames=3, zoom="1+sound/2", sound=str(tmp_path / "a.wav"), fps=10)
    assert [m.zoom for m in motion.by_frame(2)] == pytest.approx(1 + expected / 2, rel=1e-12)
    scenes = parse("a:(1-2*sound) | b:2 ^ c:(n)")
    animation.check_time(motion, scenes)
    weights = animation.expression_weights(scenes, motion)
    np.testing.assert_allclose(weights, np.stack([1 - 2 * expected, np.ones(6), np.arange(6)], 1), rtol=1e-6)
    with pytest.raises(ConfigError, match="the weight of 'a': '.1/.n-1..' has no value at frame 1"):
        animation.expression_weights(parse("a:(1/(n-1))"), motion)
    for how, prompt, message in (
        ({}, "a:(sound)", "an expression of the prompt contains sound: name the .wav file"),
        ({"sound": "a.wav"}, "a:(t)", "sound = a.wav has no effect: no expression"),
        ({"fps": 30.0}, "a:(n)", "fps = 30 has no effect"),
    ):
        with pytest.raises(ConfigError, match=message):
            animation.check_time(Motion(**how), parse(prompt))
    wavfile.write(tmp_path / "silent.wav", 1000, 0 * wave)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "silent.wav").read_bytes()[:30])
    (tmp_path / "empty.wav").write_bytes((tmp_path / "silent.wav").read_bytes()[:44])
    for name, message in (
        ("silent", "is silent"), ("text", "is not a .wav file of samples"), ("cut", "is not a .wav file of samples"),
        ("empty", ".wav"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            sound.loudness(tmp_path / f"{name}.wav", 10, 4)


def test_options_without_a_meaning_in_an_animation_are_refused(vq, clip):
    with pytest.raises(ConfigError, match="an animation has no last step"):
        guided.animate(vq, clip, "a", lr_decay=0.1, **FEW)
    with pytest.raises(ConfigError, match="save_every applies to paintings only"):
        guided.animate(vq, clip, "a", save_every=3, **FEW)
    with pytest.raises(ConfigError, match="blend = 2 needs two scenes or more"):
        guided.animate(vq, clip, "a", motion=Motion(frames=3, blend=2), **FEW)
    with pytest.raises(ConfigError, match="the frames of a video_in are the starts"):
        guided.animate(vq, clip, "a", motion=Motion(video_in="a.mp4"), init_noise="plain", **FEW)
    with pytest.raises(PromptError):
        guided.animate(vq, clip, "a ^", **FEW)


def test_a_short_scene_blends_as_long_as_it_can():
    assert Motion(frames=np.int64(3), zoom=np.float32(1.5)) == Motion(frames=3, zoom=1.5)
    assert [Motion(frames=frames).blend_frames for frames in (1, 5, 30)] == [0, 4, 10]
