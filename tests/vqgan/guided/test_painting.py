"""Paintings against a plain loop of single steps; and the same paintings with split cuts, on eight devices, many at once,
and resumed."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vqgan_jax
from nn_jax.mixed_precision import round_weights
from train_jax import memory
from train_jax.errors import ConfigError, LoadError
from vqgan_jax import guided
from vqgan_jax.guided import augment, cutouts, losses, options, painting, targets, trajectory
from vqgan_jax.guided.prompts import parse_scene

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "vqgan"
PROMPT = "a red star | a blue circle:0.5:0.4 | a green square:-0.3"
FEW = {"steps": 6, "save_every": 3, "cuts": 8, "progress": False}  # chunks of one length: one program
# Without augmentations programs are smaller.
PLAIN = {"flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
# One program of one step, which the tests of this folder share for prompts of two parts.
SIMPLE = PLAIN | {"steps": 3, "save_every": 1, "cuts": 8, "progress": False}
SCENE, OTHER_SCENE = "a red star | noise:-0.3", "a blue circle:-1 | a green square:0.5"


@pytest.fixture(scope="module")
def plain(vq, clip):
    return guided.paint(vq, clip, PROMPT, seed=3, **FEW)


@pytest.fixture(scope="module")
def simple(vq, clip):
    return guided.paint(vq, clip, SCENE, **SIMPLE)


def loop(vq, clip, seed: int, steps: int):
    """The textbook's loop: one gradient and one step of Adam at a time, every cut and every part by itself."""
    hparams = jax.tree.map(jnp.asarray, options.resolve({"steps": steps, "cuts": 8}).hparams())
    parts = [("a red star", 1.0, -np.inf), ("a blue circle", 0.5, 0.4), ("a green square", -0.3, -np.inf)]
    targets = clip.encode_text([text for text, _, _ in parts])
    codebook = np.asarray(vq.variables["params"]["quantizer"]["codebook"])
    mean, std = (np.array(x, np.float32)[None, None] for x in (clip.preprocess.mean, clip.preprocess.std))
    key = jax.random.key(seed)

    @jax.jit
    def gradient(z, rounded, step):
        cut_key = jax.random.split(jax.random.fold_in(key, step))[1]

        def loss(z):
            quantized = z + jax.lax.stop_gradient(rounded - z)
            x = (vq.module.apply(vq.variables, quantized[None], method="decode_vectors")[0] + 1) / 2
            x = losses.clamp_with_grad(x)

            def one_cut(i):
                crop_key, augment_key = jax.random.split(jax.random.fold_in(cut_key, i))
                cut = cutouts.crop(x, *cutouts.sample_square(crop_key, (16, 16), 8, hparams), 8)
                cut = augment.augment(augment_key, cut, hparams, augment.Augmentations(True, True, True, False, True))
                u = clip.module.apply(clip.variables, ((cut - mean) / std)[None], method="encode_image")[0]
                total = 0.0
                for v, (_, weight, stop) in zip(targets, parts, strict=True):
                    distance = 2 * jnp.arcsin(jnp.linalg.norm(u - v) / 2) ** 2
                    signed = np.sign(weight) * distance
                    total += abs(weight) * jnp.where(signed > stop, signed, jax.lax.stop_gradient(signed)) / 8
                return total

            return jnp.sum(jax.lax.map(one_cut, jnp.arange(8)))

        return jax.value_and_grad(loss)(z)

    z = codebook[np.random.default_rng(seed).integers(0, 12, (4, 4), np.int32)]
    m, v, values = np.zeros_like(z), np.zeros_like(z), []
    for step in range(steps):
        nearest = np.argmin(((z[:, :, None] - codebook[None, None]) ** 2).sum(-1), axis=-1)
        value, g = map(np.asarray, gradient(z, codebook[nearest], step))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        z = z - 0.1 * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        z = np.clip(z, codebook.min(0), codebook.max(0)).astype(np.float32)
        values.append(value)
    return np.array(values), z


def test_the_scan_is_a_plain_loop_of_single_steps(vq, clip, plain):
    values, z = loop(vq, clip, seed=3, steps=6)
    np.testing.assert_allclose(plain.losses[0], values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plain.latents[0], z, atol=1e-4)
    assert values.std() > 1e-3


def test_a_loss_that_is_not_finite_ends_the_painting(vq, clip):
    broken = dataclasses.replace(vq, variables=jax.tree.map(lambda x: x * np.nan, vq.variables))
    with pytest.raises(FloatingPointError, match="painting 0: the loss is nan after 0 steps"):
        guided.paint(broken, clip, PROMPT, seed=3, **FEW)


def compute_objective(vq, clips, cuts: int, dtype=None):
    """Value and gradient of the objective of the first step, by the painter's own problem."""
    job = painting.Job(parse_scene(PROMPT), 3, options.resolve({"steps": 6, "cuts": cuts}))
    painter = painting.Painter(vq, clips, [job])
    config = painter._make_static_config(cuts, False)
    perceptors = painter._get_programs(cuts, False).perceptors
    problem, state = (jax.tree.map(lambda x: x[0], tree) for tree in (painter.problem, painter.state))

    def value(z):
        objective = trajectory.objective
        return objective(perceptors, config, painter.variables, problem, state._replace(z=z))

    return jax.jit(jax.value_and_grad(value))(state.z)


def test_each_clip_sees_its_own_cuts(vq, clip):
    """The same CLIP twice is one CLIP with twice the cuts."""
    value, gradient = compute_objective(vq, [clip, clip], 4)
    expected_value, expected_gradient = compute_objective(vq, clip, 8)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())


def test_the_first_gradient_in_bfloat16_is_that_of_float32(vq, clip, bfloat16_models):
    value, gradient = compute_objective(*bfloat16_models, 8)
    expected_value, expected_gradient = compute_objective(vq, clip, 8)
    assert value.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(value, expected_value, atol=0.03)
    cosine = jnp.vdot(gradient, expected_gradient) / jnp.linalg.norm(gradient) / jnp.linalg.norm(expected_gradient)
    assert cosine > 0.99


def test_bfloat16_differs_from_float32_by_rounding(bfloat16_models, simple):
    painted = guided.paint(*bfloat16_models, SCENE, **SIMPLE)
    assert painted.latents.dtype == painted.losses.dtype == np.float32 and painted.images.std() > 3
    # Cosines of 8 numbers are off by some 2^-7; then Adam moves by signs, and single codes fall to another side.
    np.testing.assert_allclose(painted.losses[0, 0], simple.losses[0, 0], atol=0.03)
    np.testing.assert_allclose(painted.losses, simple.losses, atol=0.15)
    # Models whose weights were rounded when they were loaded compute the same, in a program of their own.
    rounded = [dataclasses.replace(m, variables=round_weights(m.variables, jnp.bfloat16)) for m in bfloat16_models]
    again = guided.paint(*rounded, SCENE, **SIMPLE)
    np.testing.assert_allclose(again.losses[0, 0], painted.losses[0, 0], atol=1e-3)


def test_what_is_returned(vq, plain):
    assert plain.images.shape == (1, 16, 16, 3) and plain.images.dtype == np.uint8
    assert plain.losses.shape == (1, 6) and plain.snapshots.shape == (1, 2, 16, 16, 3)
    np.testing.assert_array_equal(plain.snapshots[:, -1], plain.images)
    np.testing.assert_array_equal(plain.images, np.round(255 * vq.decode(plain.codes)).astype(np.uint8))
    assert plain.plan.total > 0 and (plain.micro_cuts, plain.remat) == (8, False)


def test_the_seed_decides(vq, clip, plain):
    again = guided.paint(vq, clip, PROMPT, seed=3, **FEW)
    np.testing.assert_array_equal(again.images, plain.images)
    np.testing.assert_array_equal(again.losses, plain.losses)
    assert (guided.paint(vq, clip, PROMPT, seed=4, **FEW).images != plain.images).any()


def test_cuts_are_split_over_eight_devices(models_on_all_devices, simple):
    assert jax.device_count() == 8
    painted = guided.paint(*models_on_all_devices, SCENE, **SIMPLE)
    jobs = [painting.Job(parse_scene(SCENE), 0, options.resolve({"cuts": 8}))]
    assert painting.Painter(*models_on_all_devices, jobs)._make_static_config(8, False).split == "cuts"
    np.testing.assert_allclose(painted.losses, simple.losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(painted.latents, simple.latents, atol=1e-4)


@pytest.fixture(scope="module")
def paint_with_two_clips(vq, clip, other_clip):
    """Paints with weights of two CLIPs, with split cuts and all steps in one scan."""
    split = SIMPLE | {"save_every": 3, "remat": True, "micro_cuts": 4}
    return lambda weights: guided.paint(vq, [clip, other_clip], SCENE, clip_weights=weights, **split)


def test_split_cuts_in_one_scan_give_the_same_losses(paint_with_two_clips, simple):
    painted = paint_with_two_clips((1, 0))
    np.testing.assert_allclose(painted.losses, simple.losses, rtol=1e-5, atol=1e-5)
    assert (painted.micro_cuts, painted.remat) == (4, True)


def test_clip_weights_weigh_the_losses_of_clips(paint_with_two_clips, simple):
    def first_loss(weights):
        return paint_with_two_clips(weights).losses[0, 0]

    first, second = simple.losses[0, 0], first_loss((0, 1))
    assert second != pytest.approx(first, rel=1e-2)
    assert first_loss((0.25, 0.5)) == pytest.approx(0.25 * first + 0.5 * second, rel=1e-5)
    assert first_loss(None) == pytest.approx((first + second) / 2, rel=1e-5)
    with pytest.raises(ConfigError, match="2 CLIP"):
        first_loss((1,))


def test_a_budget_that_cannot_be_met_is_refused(vq, clip, plain, monkeypatch):
    # The candidates are tested in test_memory.py; here only the one whose program is compiled already.
    calls = []
    monkeypatch.setattr(painting.memory, "candidate_splits", lambda *call: calls.append(call) or [(8, False)])
    with pytest.raises(ConfigError, match="memory = 1e-09 GiB per device: the most memory-efficient step needs"):
        guided.paint(vq, clip, PROMPT, seed=3, **FEW, memory=1e-9)
    assert calls == [(8, 1)], "cuts and devices"


def test_within_a_budget_nothing_is_split(vq, clip, plain):
    painted = guided.paint(vq, clip, PROMPT, seed=3, **FEW, memory=1)
    np.testing.assert_array_equal(painted.losses, plain.losses)
    assert (painted.micro_cuts, painted.remat) == (8, False)


def test_a_resumed_painting_is_the_uninterrupted_one(vq, clip, plain, tmp_path):
    state = tmp_path / "state.npz"
    guided.paint(vq, clip, PROMPT, seed=3, state_file=state, **FEW | {"steps": 3})
    painted = guided.paint(vq, clip, PROMPT, seed=3, resume_from=state, **FEW)
    np.testing.assert_array_equal(painted.latents, plain.latents)
    np.testing.assert_array_equal(painted.losses, plain.losses)
    for changes, message in (
        ({"seed": 4}, r"seeds is \[3\] in the file and \[4\] in this painting"),
        ({"lr": 0.2}, "options lr is 0.1 in the file and 0.2 in this painting"),
        ({"steps": 2}, "3 steps are complete already"),
    ):
        with pytest.raises(LoadError, match=message):
            guided.paint(vq, clip, PROMPT, resume_from=state, **{"seed": 3} | FEW | changes)
    with np.load(state) as arrays:
        saved = dict(arrays)
    about = json.loads(str(saved["about"]))
    for name in ("drawer", "drawer_options", "sparsity", "prior", "prior_weight", "prior_text", "losses"):
        del about["options"][0][name]  # of a version without drawers, priors and a user's own losses
    np.savez(state, **saved | {"about": json.dumps(about)})
    np.testing.assert_array_equal(guided.paint(vq, clip, PROMPT, seed=3, resume_from=state, **FEW).latents, plain.latents)
    for damage, words in (({"leaf0": np.zeros((1, 2))}, "leaf0 of another"), ({"losses": np.zeros(3)}, "losses of another")):
        np.savez(state, **saved | damage)
        with pytest.raises(LoadError, match=f"is not a state of this painting: {words} shape"):
            guided.paint(vq, clip, PROMPT, resume_from=state, **{"seed": 3} | FEW)
    state.write_bytes(b"nothing")
    with pytest.raises(LoadError, match="is not the state file"):
        guided.paint(vq, clip, PROMPT, resume_from=state, **FEW)


def test_previews_show_the_snapshots(vq, clip, plain):
    previews = []
    guided.paint(vq, clip, PROMPT, seed=3, preview=lambda *now: previews.append(now), **FEW)
    assert [step for step, _, _ in previews] == [3, 6]
    for i, (step, images, values) in enumerate(previews):
        np.testing.assert_array_equal(images, plain.snapshots[:, i])
        np.testing.assert_array_equal(values, plain.losses[:, :step])


@pytest.fixture(scope="module")
def many(models_on_all_devices):
    """16 paintings in one program, divided over eight devices: each setting but the first changes one thing."""
    settings = [
        {},
        {"smoothness": 3.0},
        {"saturation": -1.0},
        {"symmetry": 3.0},
        {"edge": 3.0, "edge_width": 0.25},
        {"average": 0.5},
        {"lr_decay": 0.1, "lr_decay_at": 0.3},
        {"lr": 0.05},
    ]
    return settings, guided.paint_many(*models_on_all_devices, [SCENE, OTHER_SCENE], settings=settings, **SIMPLE)


def test_many_at_once_equal_the_same_one_by_one(vq, clip, many):
    settings, painted = many
    assert painted.images.shape == (2, 1, 8, 16, 16, 3) and painted.losses.shape == (2, 1, 8, 3)
    for p, t, prompt in ((1, 0, OTHER_SCENE), (0, 5, SCENE)):
        one = guided.paint(vq, clip, prompt, **SIMPLE, **settings[t])
        np.testing.assert_allclose(painted.losses[p, 0, t], one.losses[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(painted.latents[p, 0, t], one.latents[0], atol=1e-4)


def test_paintings_are_split_over_eight_devices(models_on_all_devices, many):
    settings = options.resolve_many({name: value for name, value in SIMPLE.items() if name != "progress"}, many[0])
    jobs = [painting.Job(parse_scene(scene), 0, o) for scene in (SCENE, OTHER_SCENE) for o in settings]
    assert painting.Painter(*models_on_all_devices, jobs)._make_static_config(8, False).split == "paintings"


def test_terms_are_added_with_their_weights(many):
    settings, painted = many
    # Before the first step all settings of a prompt and seed show the same picture: differences of losses are the terms.
    first = painted.losses[..., 0]
    added = first - first[:, :, :1]
    assert (added[:, :, 1:5] > 1e-4).all()  # each of them is a cost
    np.testing.assert_allclose(added[..., 5:], 0, atol=1e-6)  # neither averages nor rates cost anything
    np.testing.assert_allclose(added[0, :, 1:5], added[1, :, 1:5], rtol=1e-2, atol=1e-5)  # whatever the prompt


def test_a_decaying_rate_shortens_the_later_steps(many):
    _, painted = many
    steady, decaying = painted.latents[0, 0, 0], painted.latents[0, 0, 6]
    np.testing.assert_allclose(painted.losses[0, 0, 6, :2], painted.losses[0, 0, 0, :2], atol=1e-5)
    assert np.abs(steady - decaying).max() == pytest.approx(0.18, abs=0.03)  # two steps of 0.01 instead of 0.1


def test_the_moving_average_of_latents(vq, clip, many):
    _, painted = many
    z = [guided.paint(vq, clip, SCENE, **SIMPLE | {"steps": n}).latents[0] for n in (1, 2, 3)]
    expected = (0.25 * z[0] + 0.5 * z[1] + z[2]) / 1.75  # decay 0.5, normalised by the weights of three steps
    np.testing.assert_allclose(painted.latents[0, 0, 5], expected, atol=1e-4)


def test_settings_are_traced_options(vq, clip):
    with pytest.raises(ConfigError, match="cuts is not a traced option"):
        guided.paint_many(vq, clip, ["a"], settings=[{"cuts": 3}], **SIMPLE)
    with pytest.raises(TypeError, match="write \\[prompt\\]"):
        guided.paint_many(vq, clip, "a", **SIMPLE)


def test_paintings_may_go_in_parts(vq, clip, many):
    _, together = many
    settings = [{"lr": 0.1}, {"lr": 0.05}]
    parts = guided.paint_many(vq, clip, [SCENE], seeds=(0, 1), settings=settings, at_once=1, **SIMPLE)
    assert parts.images.shape == (1, 2, 2, 16, 16, 3)
    np.testing.assert_allclose(parts.losses[0, 0], together.losses[0, 0, [0, 7]], rtol=1e-5, atol=1e-5)
    assert (parts.latents[0, 0, 0] != parts.latents[0, 0, 1]).any()
    second_seed = guided.paint(vq, clip, SCENE, seed=1, **SIMPLE)
    np.testing.assert_array_equal(parts.images[0, 1, 0], second_seed.images[0])
    assert (parts.images[0, 1, 0] != parts.images[0, 0, 0]).any()


@pytest.fixture(scope="module")
def layers(tmp_path_factory, clip):
    """Files that options name."""
    folder = tmp_path_factory.mktemp("layers")
    rng = np.random.default_rng(0)
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[:, :4] = (250, 10, 60, 255)
    Image.fromarray(layer).save(folder / "overlay.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "start.png")
    np.savez(folder / "head.npz", weight=rng.standard_normal(8).astype(np.float32), bias=np.float32(0.5))
    return folder


def test_terms_of_files_and_colours_are_in_the_loss(vq, clip, layers):
    # Cuts are the whole picture, unchanged, and z is moved from its start: every term can be told by hand.
    still = {"cut_min": 1.0, "init_image": layers / "start.png", **SIMPLE}
    still |= {"palette": ("red", "#0000ff"), "aesthetic": str(layers / "head.npz")}
    del still["progress"]
    none = {"palette_weight": 0.0, "aesthetic_weight": 0.0}
    each = [{"init_weight": 0.5}, {"init_pixels": 2.0}, {"palette_weight": 3.0}, {"aesthetic_weight": 0.7}]
    settings = options.resolve_many(still, [none, *(none | one for one in each)])
    painter = painting.Painter(vq, clip, [painting.Job(parse_scene("a red star"), 0, o) for o in settings])
    moved = painter.state.z + 0.1
    _, values = painter.advance(painter.init_state(moved), 1)

    codebook = np.asarray(vq.variables["params"]["quantizer"]["codebook"])
    nearest = np.argmin(((np.asarray(moved[0])[:, :, None] - codebook[None, None]) ** 2).sum(-1), axis=-1)
    x = np.clip(vq.decode(nearest[None].astype(np.int32))[0], 0, 1)
    start = np.asarray(Image.open(layers / "start.png"), np.float32) / 255
    colours = np.array([[1, 0, 0], [0, 0, 1]], np.float32)
    cut = jax.image.resize(x, (8, 8, 3), "linear", antialias=True)
    mean, std = (np.array(s, np.float32)[None, None] for s in (clip.preprocess.mean, clip.preprocess.std))
    encode = jax.jit(functools.partial(clip.module.apply, method="encode_image"))
    u = encode(clip.variables, ((cut - mean) / std)[None])[0]
    head = np.load(layers / "head.npz")
    expected = [
        0.5 * 0.1**2,
        2 * np.mean((x - start) ** 2),
        3 * np.mean([min(((pixel - colour) ** 2).sum() for colour in colours) for pixel in x.reshape(-1, 3)]),
        -0.7 * (u @ head["weight"] + head["bias"]),
    ]
    np.testing.assert_allclose(values[1:, 0] - values[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_the_dvae_is_painted_with_by_probabilities_with_all_terms(clip, to_one_device, layers):
    # One program with all terms that need files, other latents, other cuts and another optimiser.
    dvae = to_one_device(vqgan_jax.load(GOLDEN / "dvae"))
    common = SIMPLE | {"size": (16, 16), "init_image": layers / "start.png"}
    with pytest.raises(ConfigError, match="latents = 'straight' needs code vectors"):
        guided.paint(dvae, clip, "a", **common)
    painted = guided.paint(
        dvae, clip, f"image={layers / 'start.png'} | noise=3:0.5", latents="gumbel", cut_method="pooling",
        optimizer="rmsprop", init_weight=0.1, init_pixels=2.0, palette=("red", "#0000ff"), erase=0.5,
        overlay=layers / "overlay.png", aesthetic=str(layers / "head.npz"), temperature=0.5, temperature_end=0.1, **common,
    )  # fmt: skip
    np.testing.assert_array_equal(painted.images[0, :, :4], np.broadcast_to((250, 10, 60), (16, 4, 3)))
    assert np.isfinite(painted.losses).all() and painted.latents.shape == (1, 2, 2, dvae.num_codes)
    start = dvae.encode(np.asarray(Image.open(layers / "start.png"), np.float32)[None] / 255)
    np.testing.assert_array_equal(np.argmax(painted.latents, -1), start)


@pytest.mark.parametrize("name", options.OPTIMIZERS)
def test_first_steps_of_the_optimisers(name):
    g = np.array([0.5, -2.0, 0.01], np.float32)
    rule = trajectory.gradient_transformation(name)
    updates, _ = rule.update(jnp.asarray(g), rule.init(jnp.zeros(3)), jnp.zeros(3))
    expected = {
        "sgd": g,
        "radam": g,  # without enough steps for a variance, only the corrected first moment
        "adagrad": g / np.sqrt(0.1 + g**2),
        "rmsprop": g / np.sqrt(0.1 * g**2 + 1e-8),
        "nadam": np.sign(g) * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9)),
    }.get(name, np.sign(g))
    np.testing.assert_allclose(updates, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": []}, "at least one string"),
        ({"n": 0}, "n = 0 must be an integer of at least 1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32 - 1, "n": 2}, "seed = 4294967295"),
        ({"size": (16, 18)}, "both sides must be divisible by 4"),
        ({"stepz": 3}, "stepz is not an option: did you mean steps"),
        ({"prompts": "a ^ b"}, "starts another scene"),
        ({"clip_weights": [True]}, "it must be a list of numbers"),
        ({"seed": np.uint8(250), "n": 2**32 - 200}, "seed = "),
    ],
)
def test_invalid_arguments_are_refused(vq, clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        guided.paint(vq, clip, **{"prompts": "a"} | arguments)


def test_weights_of_clips_are_a_list_of_numbers():
    for odd in (1.0, "ab", ["a"], [[1.0]]):
        with pytest.raises(ConfigError, match="it must be a list of numbers"):
            targets.resolve_clip_weights(odd, 1)


def test_wide_cuts_are_beside_the_other_ones(clip):
    # Side 1 of a square picture: a wide cut is the whole picture. Cuts that are not wide are those of a painting without.
    few = SIMPLE | {"steps": 1, "drawer": "pixel", "size": (16, 16)}
    settings = [{"wide": 0.0}, {"wide": 0.5}, {"wide": 1.0}]
    many = functools.partial(guided.paint_many, None, clip, [SCENE], **few)
    painted = many(settings=settings, wide_side=1.0, micro_cuts=4).losses[0, 0, :, 0]
    zoomed, whole = many(settings=[{}, {"cut_min": 1.0}]).losses[0, 0, :, 0]
    np.testing.assert_allclose(painted[[0, 2]], [zoomed, whole], rtol=1e-5)
    assert min(zoomed, whole) != pytest.approx(painted[1], rel=1e-4)


def test_a_cut_power_without_effect_is_refused(vq, clip, other_clip):
    small = {"size": (8, 16), "cut_power": 2.0}
    with pytest.raises(ConfigError, match="cut_power = 2: an image of 8 x 16 is no larger than CLIP's 8 x 8"):
        guided.paint(vq, clip, "a", **FEW | small)
    jobs = [painting.Job(parse_scene("a"), 0, o) for o in options.resolve_many(small, [{}, {"cut_min": 0.5}])]
    painting.Painter(vq, clip, jobs)  # it has an effect in one of them


def test_pictures_beyond_the_memory_are_refused_before_arrays_are_made(vq, clip, monkeypatch):
    # The decoder's last convolutions map [H, W, 8] float32 to the same.
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 40 * 40 * 8 * 4 - 1)
    monkeypatch.setattr(painting.Painter, "_make_problem", lambda self: pytest.fail("arrays were made"))
    with pytest.raises(ConfigError, match="decoding 1 image.* of 40 x 40 takes at least 0.0 GiB.*: paint a smaller size"):
        guided.paint(vq, clip, "a", size=(40, 40))
    # There the largest are the attention's logits, float32 of each of 256 positions with each.
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 256 * 256 * 4 - 1)
    with pytest.raises(ConfigError, match="decoding 1 image.* of 64 x 64 takes"):
        guided.paint(vq, clip, "a", size=(64, 64))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 256 * 256 * 4)
    with pytest.raises(pytest.fail.Exception, match="arrays were made"):
        guided.paint(vq, clip, "a", size=(64, 64))


def test_a_step_beyond_the_memory_is_refused(vq, clip, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20_000)
    with pytest.raises(ConfigError, match="a step takes 0.0 GiB .*: split the cuts"):
        guided.paint(vq, clip, SCENE, **SIMPLE)


def test_a_head_of_another_clip_is_refused(vq, clip, tmp_path):
    np.savez(tmp_path / "head.npz", weight=np.zeros(5, np.float32), bias=np.float32(0))
    with pytest.raises(ConfigError, match=r"weight \[5\].*needs weight \[8\]"):
        guided.paint(vq, clip, "a", aesthetic=str(tmp_path / "head.npz"), **FEW)
