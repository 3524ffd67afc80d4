"""Parts of a prompt that see a place only, and parts whose weights change in time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from train_jax.errors import ConfigError, LoadError
from vqgan_jax import guided
from vqgan_jax.guided import keyframes, metadata, options, painting, trajectory, views
from vqgan_jax.guided.prompts import PromptError, parse_scene

PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
FEW = PLAIN | {"drawer": "pixel", "size": (16, 24), "cuts": 4, "wide": 0.25, "steps": 4, "save_every": 2}


@pytest.fixture
def mask(tmp_path):
    """A picture of the painting's size that is white in a triangle, which no box is."""
    is_seen = np.tri(16, 24, -1, dtype=bool)
    is_seen[:, 12:] = False
    Image.fromarray(255 * is_seen.astype(np.uint8)).save(tmp_path / "mask.png")
    return is_seen, tmp_path / "mask.png"


def compute_gradient(clip, prompts, **changes):
    """Value and gradient with respect to the pixels of each prompt, in one program."""
    resolved = options.resolve(FEW | changes)
    painter = painting.Painter(None, clip, [painting.Job(parse_scene(prompt), 0, resolved) for prompt in prompts])
    programs = painter._get_programs(*painter._explicit_split())

    def value(problem, state, z):
        return trajectory.objective(programs.perceptors, programs.config, painter.variables, problem, state._replace(z=z))

    return jax.jit(jax.vmap(jax.value_and_grad(value, 2)))(painter.problem, painter.state, painter.state.z)


def test_gradients_are_zero_outside_of_the_places(clip, mask):
    is_seen, file = mask
    right = np.zeros((16, 24), bool)
    right[:8, 18:] = True
    prompts = [
        f"a red star:mask={file} | a blue circle:-0.5:place=0.75,0,1,0.5",
        "a red star:place=right half",
        "a red star | a blue circle:2:place=top left",
        "a red star | a blue circle:2",
    ]
    values, gradients = map(np.asarray, compute_gradient(clip, prompts))
    outside = np.abs(gradients[0]).max(-1)
    assert (outside[~(is_seen | right)] == 0).all()
    assert (outside[is_seen] != 0).mean() > 0.9 and (outside[right] != 0).mean() > 0.9
    assert (gradients[1][:, :12] == 0).all() and (gradients[1][:, 12:] != 0).mean() > 0.9
    assert (gradients[2] != 0).mean() > 0.9, "the whole picture is seen by the other part"
    # Alone, or in micro-batches of cutouts, they are the same.
    alone, gradient = compute_gradient(clip, prompts[:1], micro_cuts=2, remat=True)
    np.testing.assert_allclose(alone[0], values[0], rtol=1e-5)
    np.testing.assert_allclose(gradient[0], gradients[0], atol=1e-5 * np.abs(gradients[0]).max())
    # Parts without a place see the cutouts that they see in a prompt without places.
    without, _ = compute_gradient(clip, ["a red star | a blue circle:2"])
    np.testing.assert_allclose(values[3], without[0], rtol=1e-5)


def test_cutouts_lie_in_the_bounding_box(mask):
    is_seen, file = mask
    scenes = [parse_scene(f"a:mask={file} | b"), parse_scene("a:place=bottom")]
    made = views.make_views(scenes, (16, 24), with_whole=False)
    np.testing.assert_array_equal(made.boxes, [[[1, 0, 15, 12], [0, 0, 16, 24]], [[11, 0, 5, 24], [11, 0, 5, 24]]])
    np.testing.assert_array_equal(made.masks[0, 0], is_seen)
    assert metadata.hash_files(options.resolve({}), scenes).keys() == {str(file)}
    np.testing.assert_array_equal(made.parts, [[[1, 0], [0, 1]], [[1, 0], [0, 0]]])
    assert made.whole.tolist() == [[0, 1], [0, 0]]
    assert views.make_views(scenes[1:], (16, 24), with_whole=True).whole.tolist() == [[1, 0]]
    with pytest.raises(ConfigError, match="place=0,0,0.01,1 has no pixel in a picture of 16 x 24"):
        views.make_views([parse_scene("a:place=0,0,0.01,1")], (16, 24), with_whole=False)


def test_weights_at_each_step():
    scenes = [parse_scene("a:(2:1, 6:-3, 7:0) | b:-0.5:from=3:until=5"), parse_scene("c:(1:0,4:2):from=2")]
    made = keyframes.make_keyframes(scenes, 10)
    for step in range(10):
        expected = [
            [np.interp(step, [2, 6, 7], [1, -3, 0]), -0.5 if 3 <= step < 5 else 0],
            [np.interp(step, [1, 4], [0, 2]) if step >= 2 else 0, 0],
        ]
        weights = [keyframes.weights_at(jax.tree.map(lambda x, i=i: x[i], made), jnp.int32(step)) for i in range(2)]
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    with pytest.raises(ConfigError, match="from=9 of the part 'a': it must be below steps = 9"):
        keyframes.make_keyframes([parse_scene("a:from=9")], 9)


def test_a_painting_follows_its_keyframes(clip, tmp_path):
    # The picture stays, and each cutout is the whole: losses are the weights times constant distances.
    still = PLAIN | {"drawer": "pixel", "size": (16, 16), "cuts": 1, "cut_min": 1.0, "lr": 1e-8, "progress": False}
    still |= {"steps": 6, "save_every": 3}
    prompt = "a red star:(1:1, 4:0.25) | a blue circle:-2:from=2:until=4"
    [first, second] = (guided.paint(None, clip, p, **still).losses[0, 0] for p in ("a red star", "a blue circle"))
    painted = guided.paint(None, clip, prompt, **still)
    expected = np.interp(np.arange(6), [1, 4], [1, 0.25]) * first - 2 * second * np.array([0, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(painted.losses[0], expected, rtol=1e-5)
    state = tmp_path / "state.npz"
    guided.paint(None, clip, prompt, state_file=state, **still | {"steps": 3})
    resumed = guided.paint(None, clip, prompt, resume_from=state, **still)
    np.testing.assert_array_equal(resumed.losses, painted.losses)
    with pytest.raises(LoadError, match="prompts is"):
        guided.paint(None, clip, prompt.replace("from=2", "from=1"), resume_from=state, **still)
    with pytest.raises(ConfigError, match="the weight of 'a red star' changes by steps: in an animation"):
        guided.animate(None, clip, prompt, **{name: value for name, value in still.items() if name != "save_every"})


@pytest.mark.parametrize(
    "prompt, character, message",
    [
        ("a:place=middle", 3, "'middle' is not a place: it must be left half, right half, "),
        ("a:place=0,0,0,1", 3, "'0,0,0,1' is not a place"),
        ("a:place=", 9, "place= needs a value"),
        ("a:where=top", 3, "use place, mask, from, until, not 'where'="),
        ("a:place=top:mask=m.png", 13, "a part has one place or mask="),
        ("a:from=1:from=2", 10, "a part has one from="),
        ("a:from=soon", 3, "from= needs a step, an integer of 0 or more, not 'soon'"),
        ("a:from=5:until=5", 10, "until=5 must be after from=5"),
        ("a:(0:1, 0:2)", 3, "the steps of keyframes must increase, not 0, 0"),
        ("a:(0:1, 5:x)", 3, "'(0:1, 5:x)' are not keyframes; write (step:number, step:number)"),
        ("a:(0:1, -5:2)", 3, "'(0:1, -5:2)' are not keyframes"),
        ("a:(0:1:2)", 3, "'(0:1:2)' are not keyframes"),
        ("a:(0:1,)", 3, "'(0:1,)' are not keyframes"),
        ("a:until=99999999", 3, "until= needs a step"),
        ("a:(0:1, 5", 3, "'(0:1, 5' are not keyframes"),
        ("a:(0:0, 5:0)", 3, "a part of weight 0 has no effect"),
        ("a:(0:-1, 5:0):0.1", 15, "with stop 0.1 a part of weight 0 never has a gradient"),
    ],
)
def test_mistakes_point_at_the_character(prompt, character, message):
    with pytest.raises(PromptError, match=f"character {character} ") as error:
        parse_scene(prompt)
    assert message in str(error.value)
