"""The prior of a painting: the likelihood of its codes under a second stage, and what cannot be one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.errors import ConfigError, LoadError
from vqgan_jax import guided
from vqgan_jax.guided import latents, metadata, options, painting, prior, resume
from vqgan_jax.guided.prompts import parse_scene
from vqgan_jax.stage2.condition import ClassCondition

STILL = {"cut_min": 1.0, "flip": 0.0, "rotate": 0.0, "shift": 0.0, "perspective": 0.0, "jitter": 0.0, "noise": 0.0}
STILL |= {"steps": 3, "save_every": 1, "cuts": 2, "prior": "of a test"}


def compute_logits(second_stage, codes, text=None):
    """Computes the logits of each image's codes."""
    return second_stage.logits(second_stage.condition.encode([text] * len(codes)), codes)[1]


def compute_nats(logits, codes):
    """Computes the mean negative log-likelihood of each image's codes, in nats."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, codes.reshape(len(codes), 16, 1), axis=-1).mean(axis=(1, 2))


@pytest.mark.parametrize(
    "kind, with_text, guidance, start",
    [("straight", False, 1.0, 0.0), ("soft", False, 1.0, 0.0), ("straight", True, 1.0, 0.5), ("straight", True, 3.0, 0.9)],
)
def test_the_term_is_the_likelihood_of_the_codes(kind, with_text, guidance, start, vq, clip, second_stage, loaded):
    changes = STILL | {"latents": kind, "prior_text": with_text, "prior_guidance": guidance, "prior_start": start}
    settings = options.resolve_many(changes, [{"prior_weight": 0.0}, {"prior_weight": 0.5}])
    scene = parse_scene("noise:-0.1 | a blue moon | a red star")
    painter = painting.Painter(vq, clip, [painting.Job(scene, 0, o) for o in settings])
    codes = np.random.default_rng(1).integers(0, vq.num_codes, (4, 4)).astype(np.int32)
    z = painter.to_devices(painter.drawer.from_codes(np.stack([codes, codes])))
    if kind == "soft":
        z = 60 * z  # certain codes
    state = painter.init_state(z)
    _, values = painter.advance(state._replace(step=jnp.full(2, 2, jnp.int32)), 1)
    conditional, unconditional = (compute_logits(second_stage, codes[None], text) for text in ("a blue moon", None))
    [other], [guided_by] = (compute_nats(x, codes[None]) for x in (unconditional, conditional))
    assert abs(guided_by - other) > 0.01, "the text matters"
    logits = unconditional + guidance * (conditional - unconditional) if with_text else unconditional
    [expected] = compute_nats(logits, codes[None])
    share = max(0, (2 / 3 - start) / (1 - start))  # two of three steps done
    np.testing.assert_allclose(values[1, 0] - values[0, 0], 0.5 * share * expected, rtol=1e-4, atol=1e-6)


def test_gradients_make_codes_likelier(vq, clip, second_stage, loaded):
    for kind in ("straight", "soft"):
        changes = STILL | {"steps": 30, "save_every": 30, "latents": kind}
        weights = [{"prior_weight": 0.0}, {"prior_weight": 1.0}]
        painted = guided.paint_many(vq, clip, ["a red star:0.01"], settings=weights, progress=False, **changes)
        codes = painted.codes[0, 0]
        without, with_prior = compute_nats(compute_logits(second_stage, codes), codes)
        assert with_prior < without - 0.3, kind


def test_codes_are_one_hot_with_the_gradient_of_distances(vq):
    codebook = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    squares = ((np.asarray(codebook)[:, None] - np.asarray(codebook)[None]) ** 2).sum(-1)
    spacing = np.mean(np.min(squares + np.diag([np.inf] * 5), axis=1))
    np.testing.assert_allclose(latents.code_spacing(codebook), spacing, rtol=1e-6)
    z = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 3)), jnp.float32)
    distances = ((np.asarray(z)[:, :, None] - np.asarray(codebook)) ** 2).sum(-1)
    p = latents.probabilities("straight", z, codebook, 1.0, None, jnp.float32(spacing))
    np.testing.assert_allclose(p, np.eye(5)[distances.argmin(-1)], atol=1e-6)
    weights = jnp.arange(5.0)

    def through(z):
        return jnp.sum(latents.probabilities("straight", z, codebook, 1.0, None, jnp.float32(spacing)) @ weights)

    def soft(z):
        d = jnp.sum((z[:, :, None] - codebook[None, None]) ** 2, axis=-1)
        return jnp.sum(jax.nn.softmax(-d / spacing) @ weights)

    np.testing.assert_allclose(jax.grad(through)(z), jax.grad(soft)(z), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_a_prior(vq, clip, tmp_path, tiny):
    common = {"progress": False, "steps": 1, "cuts": 2}
    with pytest.raises(ConfigError, match="must be the run directory of a prior or of a DALL-E"):
        guided.paint(vq, clip, "a", prior=str(tmp_path), **common)
    with pytest.raises(ConfigError, match="must be the run directory of a prior or of a DALL-E"):
        guided.paint(vq, clip, "a", prior=str(tiny[1]), **common)
    with pytest.raises(ConfigError, match="prior_weight = 0.5 has no effect: give prior"):
        guided.paint(vq, clip, "a", prior_weight=0.5, **common)
    with pytest.raises(ConfigError, match="prior_guidance = 3 has no effect: give prior_text"):
        guided.paint(vq, clip, "a", prior="a run", prior_guidance=3.0, **common)


def test_the_number_of_steps_is_part_of_a_painting_with_a_prior_whose_weight_grows(vq, clip, codes_prior):
    jobs = [painting.Job(parse_scene("a"), 0, options.resolve({"steps": 3, "prior": name})) for name in (None, "of a test")]
    identities = [resume.make_identity(vq, (clip,), None, [job], [1.0])["options"][0] for job in jobs]
    assert "steps" not in identities[0] and identities[1]["steps"] == 3


def test_a_prior_reads_texts_only_if_it_knows_texts(codes_prior):
    classes = dataclasses.replace(codes_prior, condition=ClassCondition(3))
    with pytest.raises(ConfigError, match="prior_text = True: the condition is a class; it must be a DALL-E"):
        classes.encode([parse_scene("a red star")], True)
    with pytest.raises(ConfigError, match="prior_text = True: each prompt must have a text of positive weight"):
        codes_prior.encode([parse_scene("a red star"), parse_scene("a red star:-1 | noise=3")], True)


def test_a_run_is_known_by_its_config_and_newest_checkpoint(tmp_path):
    for name in ("config.json", "checkpoints/9/a", "checkpoints/10/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    digest = metadata.hash_run(str(tmp_path))
    (tmp_path / "checkpoints/9/a").write_text("an older checkpoint is none of the painting's")
    assert metadata.hash_run(str(tmp_path)) == digest
    for name in ("config.json", "checkpoints/10/a"):
        (tmp_path / name).write_text("changed")
        assert metadata.hash_run(str(tmp_path)) != digest
        (tmp_path / name).write_text(name)
    (tmp_path / "checkpoints/11").mkdir()
    (tmp_path / "checkpoints/11/a").write_text("a newer one")
    assert metadata.hash_run(str(tmp_path)) != digest


def test_a_prior_is_loaded_once_for_all_batches_of_paintings_and_known_to_a_state(
    vq, clip, codes_prior, monkeypatch, tmp_path
):
    calls = []

    def load(path, vq, size):
        calls.append(path)
        return codes_prior if len(calls) < 3 else dataclasses.replace(codes_prior, fingerprint="another")

    monkeypatch.setattr(prior, "load", load)
    options = STILL | {"steps": 1, "save_every": 1, "progress": False}
    painted = guided.paint_many(vq, clip, ["a red star"], seeds=(0, 1), at_once=1, **options)
    assert painted.images.shape[:2] == (1, 2) and calls == ["of a test"]
    paint = functools.partial(guided.paint, vq, clip, "a red star", **options)
    paint(state_file=tmp_path / "s.npz")
    with pytest.raises(LoadError, match=f"prior is {codes_prior.fingerprint} in the file and another in this painting"):
        paint(resume_from=tmp_path / "s.npz")
