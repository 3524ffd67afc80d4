"""The whole way from a text to a picture, with the noise that diffusers' UnCLIPPipeline drew, and its picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.unclip import samplers
from dalle_jax.unclip.samplers import guide, interleave, make_ancestral_update, make_steps, sample
from train_jax.compute import TransformerCompute

PRIOR_GUIDANCE, DECODER_GUIDANCE = 2.0, 3.0  # of `make_unclip.py`


@pytest.fixture
def run(golden, monkeypatch):
    """`run(stage, diffusion, *networks)`: a stage of the pipeline; the last of two networks computes the last step."""

    def run(stage, diffusion, predict, predict_last=None):
        noises = golden[f"pipeline/{stage}_noises"]
        steps = make_steps(diffusion, len(noises) + 1)
        table = jnp.concatenate([jnp.asarray(noises), jnp.zeros((1, *noises.shape[1:]))])
        monkeypatch.setattr(samplers, "draw_noise", lambda keys, t, shape: table[jnp.argmax(jnp.asarray(steps.t) == t)])
        x, update = jnp.asarray(golden[f"pipeline/{stage}_start"]), make_ancestral_update(diffusion)
        keys = jax.random.split(jax.random.key(0), len(x))
        if predict_last is None:
            return sample(predict, x, keys, steps, update)
        first, last = (jax.tree.map(lambda column, part=part: column[part], steps) for part in (np.s_[:-1], np.s_[-1:]))
        return sample(predict_last, sample(predict, x, keys, first, update), keys, last, update)

    return run


def test_the_picture_of_a_text_is_that_of_diffusers(karlo, golden, text, run):
    def network(part):
        module, params = karlo.module(part, TransformerCompute()), karlo.params(part, TransformerCompute())
        return lambda *inputs: module.apply({"params": params}, *inputs)

    pairs = interleave(*(tuple(jnp.asarray(x[rows]) for x in text) for rows in (np.s_[2:], np.s_[:2])))
    prior, decoder, first, last = map(network, ("prior", "decoder", "super_res_first", "super_res_last"))
    predict = guide(lambda x, t: prior(x, t, *pairs), PRIOR_GUIDANCE)
    image = karlo.statistics().restore(run("prior", karlo.prior_diffusion, predict))
    np.testing.assert_allclose(image, golden["pipeline/image_embedding"], atol=1e-4)

    is_dropped = interleave(jnp.zeros(2, bool), jnp.ones(2, bool))
    context = network("context")(interleave(image, image), *pairs, is_dropped)
    predict = guide(lambda x, t: decoder(x, t, context), DECODER_GUIDANCE)
    small = jnp.clip(run("decoder", karlo.decoder_diffusion, predict), -1, 1)
    upscaled = jax.image.resize(small, (len(small), karlo.super_res.size, karlo.super_res.size, 3), "cubic")
    np.testing.assert_allclose(upscaled, golden["pipeline/upscaled"], atol=1e-4)

    def with_small(network):
        return lambda x, t: network(jnp.concatenate([x, upscaled], axis=-1), t)

    pictures = run("super_res", karlo.super_res_diffusion, with_small(first), with_small(last))
    pictures = jnp.clip(pictures / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(pictures, golden["pipeline/images"], atol=1e-4)
    assert golden["pipeline/images"].std() > 0.05, "pictures that are not flat"
