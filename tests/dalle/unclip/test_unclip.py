"""unCLIP loaded, from runs and from karlo's format: images of prompts and of images, seeds, refused inputs."""

import dataclasses
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
import dalle_jax
from clip_jax.clip import Clip
from dalle_jax.unclip import decoder as decoder_lib
from dalle_jax.unclip import prior as prior_lib
from dalle_jax.unclip.samplers import make_steps
from dalle_jax.unclip.unclip import slerp
from tests import hub_server, model_cards
from train_jax import inference, run_directory
from train_jax.errors import LoadError

KARLO = Path(__file__).resolve().parents[2] / "golden" / "unclip" / "karlo"
QUICK = {"steps": 3, "prior_steps": 3, "progress": False}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def unclip(tiny_decoder):
    return dalle_jax.load_unclip(tiny_decoder[1])


@pytest.fixture(scope="module")
def expressive(unclip):
    """The same model with larger weights, so that conditions and noise matter in every pixel."""
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), unclip.decoder.variables)
    decoder = dataclasses.replace(unclip.decoder, variables=inference.on_devices(weights))
    return dataclasses.replace(unclip, decoder=decoder)


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(RNG.integers(0, 256, (20, 16, 3), np.uint8)) for _ in range(2)]


def test_a_loaded_model_has_the_averaged_weights_of_its_run(unclip, tiny_decoder):
    params = run_directory.load_weights(tiny_decoder[1])[0]["decoder"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(unclip.decoder.variables["decoder"]), params)
    assert unclip.size == 8 and unclip.dtype == "float32" and len(unclip.fingerprint) == 64


def test_images_depend_on_seed_prompt_and_number_alone(expressive):
    prompts = ["the digit one", "a handwritten two", "the digit one"]
    together = expressive.draw(prompts, 2, seed=3, guidance=2.0, **QUICK)
    assert together.images.shape == (3, 2, 8, 8, 3) and together.images.dtype == np.uint8
    assert together.samples.tolist() == [[0, 1], [0, 1], [2, 3]], "a repeated prompt continues"
    alone = expressive.draw(prompts[1:2], 1, seed=3, guidance=2.0, batch_size=1, **QUICK)
    near = abs(alone.images[0, 0].astype(int) - together.images[1, 0])
    assert near.max() <= 1, "a batch of another size rounds otherwise"
    np.testing.assert_allclose(alone.embeddings[0, 0], together.embeddings[1, 0], atol=1e-5)
    flat = together.images.reshape(6, -1).astype(int)
    distances = abs(flat[:, None] - flat[None]).mean(axis=2)
    assert (distances + np.eye(6) > 0.5).all(), "all images differ"
    other = expressive.imagine(prompts[1:2], seed=4, guidance=2.0, **QUICK)
    assert abs(other[0, 0].astype(int) - together.images[1, 0]).mean() > 0.5


def test_previews_lead_to_the_images(expressive):
    prompts, options = ["one", "two", "three", "four", "five"], {"seed": 3, "guidance": 2.0, "batch_size": 8}
    options |= {"progress": False, "steps": 7, "prior_steps": 2}
    plain, previews = expressive.draw(prompts, 2, **options), []
    shown = expressive.draw(prompts, 2, preview=lambda *preview: previews.append(preview), **options)
    assert abs(shown.images.astype(int) - plain.images).max() <= 1, "another program rounds otherwise"
    # Two batches, of which the second one is padded.
    assert [(first, steps, len(images)) for first, steps, images in previews] == [
        (first, steps, count) for first, count in ((0, 8), (8, 2)) for steps in (2, 4, 6, 7)
    ]
    flat = shown.images.reshape(10, 8, 8, 3)
    for first, images in ((0, previews[3][2]), (8, previews[7][2])):
        np.testing.assert_array_equal(images, flat[first : first + 8])
    assert abs(previews[0][2].astype(int) - flat[:8]).mean() > 1, "the first ones are unfinished"


def test_guidance_1_is_none_and_eta_1_is_random(expressive):
    prompts = ["the digit three"]
    plain = expressive.imagine(prompts, **QUICK)
    near = expressive.imagine(prompts, guidance=1 + 1e-6, prior_guidance=1 + 1e-6, **QUICK)
    assert abs(plain.astype(int) - near).max() <= 1
    guided = expressive.imagine(prompts, guidance=4.0, **QUICK)
    assert abs(plain.astype(int) - guided).mean() > 0.5
    still, moved = (expressive.imagine(prompts, eta=eta, **QUICK) for eta in (0.0, 1.0))
    assert abs(still.astype(int) - moved).mean() > 0.5


def test_the_best_of_many_samples_are_returned_first(expressive, clip):
    drawing = expressive.draw(["the digit one"], 4, rerank=clip, best=2, **QUICK)
    every = expressive.draw(["the digit one"], 4, **QUICK)
    scores = clip.encode_image(every.images[0]) @ clip.encode_text(["the digit one"])[0]
    order = np.argsort(-scores)[:2]
    assert drawing.samples[0].tolist() == order.tolist() and drawing.images.shape[1] == 2
    np.testing.assert_allclose(drawing.scores[0], scores[order], atol=1e-5)
    np.testing.assert_array_equal(drawing.images[0], every.images[0, order])


def test_a_long_prompt_is_cut_and_reported(expressive, caplog):
    expressive.imagine(["the digit one " * 9], **QUICK)
    assert "1 of 1 text(s) are longer than the 10 tokens this model reads and were cut" in caplog.text


def test_prompts_are_streamed(expressive):
    prompts = ["the digit one", "two", "the digit one"]
    expected = expressive.draw(prompts, 2, batch_size=4, **QUICK)
    for index, drawing in expressive.stream(prompts, 2, batch_size=4, **QUICK):
        assert abs(drawing.images[0].astype(int) - expected.images[index]).max() <= 1
        assert drawing.samples[0].tolist() == expected.samples[index].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Images


def test_inverted_noise_gives_the_image_back(unclip, pictures, monkeypatch):
    """Of a decoder that predicts the noise of a Gaussian, for which DDIM is exact enough with many steps.

    The optimal prediction for images with independent pixels of mean 0 and deviation 0.5 is linear.
    """
    diffusion = unclip.decoder.stage.diffusion

    def make_predict(self, variables, embeddings, ids, null_ids, guidance=1.0, *, guided=False):
        def predict(x, t):
            signal, sigma = diffusion.levels(t, x.ndim)
            epsilon = sigma / (0.25 * signal**2 + sigma**2) * x
            return jax.numpy.concatenate([epsilon, 0 * epsilon], axis=-1)

        return predict

    monkeypatch.setattr(type(unclip.decoder.stage), "make_predict", make_predict)
    fresh = dataclasses.replace(unclip, decoder=dataclasses.replace(unclip.decoder))  # compiles its programs again
    smooth = [picture.resize((8, 8), Image.Resampling.BOX) for picture in pictures]
    decoded = fresh.reconstruct(smooth, steps=100)
    assert abs(decoded.astype(int) - np.stack([np.asarray(x) for x in smooth])).max() <= 4
    noise = fresh.decoder.invert(
        np.stack([np.asarray(x) for x in smooth]), fresh.embed(smooth), fresh._empty_texts(2), steps=100, batch_size=2
    )
    scale = np.std(noise) / np.std(np.stack([np.asarray(x) for x in smooth]) / 127.5 - 1)
    assert scale == pytest.approx(2, rel=0.05), "of unit variance where pixels have that of the data"
    table = make_steps(diffusion, 100)
    assert table.t[0] == 999


def test_variations_keep_the_inverted_noise_and_add_new_one(expressive, pictures):
    still = expressive.vary(pictures[0], 2, eta=0.0, steps=4)
    np.testing.assert_array_equal(still[0], still[1])
    again = expressive.reconstruct(pictures[:1], steps=4)
    assert abs(still[0].astype(int) - again[0]).max() <= 1
    moved = expressive.vary(pictures[0], 3, eta=1.0, steps=4, seed=1)
    assert moved.shape == (3, 8, 8, 3) and abs(moved[0].astype(int) - moved[1]).mean() > 0.5
    fewer = expressive.vary(pictures[0], 1, eta=1.0, steps=4, seed=1)
    assert abs(fewer[0].astype(int) - moved[0]).max() <= 1, "image i of a seed is the same"


def test_interpolations_begin_and_end_with_the_embeddings_of_the_images(expressive, pictures, monkeypatch):
    seen = {}
    decode = decoder_lib.Decoder.decode

    def spy(self, embeddings, ids, seeds, **options):
        seen.update(embeddings=embeddings, seeds=seeds, noise=options["noise"])
        return decode(self, embeddings, ids, seeds, **options)

    monkeypatch.setattr(decoder_lib.Decoder, "decode", spy)
    images = expressive.between(*pictures, 4, steps=3)
    ends = expressive.embed(pictures)
    np.testing.assert_allclose(seen["embeddings"][[0, -1]], ends, atol=1e-5)
    assert len(images) == 4 and seen["noise"] is None and (seen["seeds"] == seen["seeds"][0]).all(), "the same noise"
    unchanged = expressive.edit(pictures[0], "the digit one", "the digit two", [0.0, 0.5], steps=3)
    np.testing.assert_allclose(seen["embeddings"][0], ends[0], atol=1e-5)
    assert np.linalg.norm(seen["embeddings"][1]) == pytest.approx(np.linalg.norm(ends[0]), rel=1e-4)
    text = expressive._embed_texts(["the digit two", "the digit one"])
    difference = text[0] - text[1]
    cosines = [x @ difference / np.linalg.norm(x) / np.linalg.norm(difference) for x in seen["embeddings"]]
    assert np.arccos(cosines[1]) == pytest.approx(np.arccos(cosines[0]) / 2, abs=1e-3), "half of the way"
    assert abs(unchanged[0].astype(int) - expressive.reconstruct(pictures[:1], steps=3)[0]).max() <= 1
    expressive.principal(pictures[0], [0, 12], steps=3)
    np.testing.assert_allclose(seen["embeddings"], [expressive.moments[0], ends[0]], atol=1e-4)


def test_slerp_turns_by_equal_angles():
    a, b = np.array([2.0, 0, 0], np.float32), np.array([0, 4.0, 0], np.float32)
    np.testing.assert_allclose(slerp(a, b, 0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1), b, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1 / 3), 8 / 3 * np.array([np.cos(np.pi / 6), 0.5, 0]), atol=1e-6)
    np.testing.assert_allclose(slerp(a, 2 * a, 0.5), 1.5 * a, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Other parts and formats


def test_an_upsampler_enlarges_the_decoders_images(tiny_decoder, tiny_upsampler):
    unclip = dalle_jax.load_unclip(tiny_decoder[1], upsampler=tiny_upsampler[1])
    assert unclip.size == 16 and unclip.imagine(["the digit one"], 2, **QUICK).shape == (1, 2, 16, 16, 3)


@pytest.fixture(scope="module")
def karlo_unclip(karlo_clip, tmp_path_factory):
    """The tiny karlo with the CLIP that it was trained with, as it were, from a file."""
    file = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    clip_jax.save(karlo_clip, file)
    return dalle_jax.load_unclip(KARLO, clip=file)


def test_karlo_imagines_and_needs_a_clip_for_images(karlo_unclip, clip, pictures):
    images = karlo_unclip.imagine(["a cat", "a dog"], 1, **QUICK)
    assert images.shape[:2] == (2, 1) and images.shape[2] == karlo_unclip.size and images.std() > 5
    unclip = dalle_jax.load_unclip(KARLO, offload=True)
    for part in (unclip.prior, unclip.decoder, unclip.upsampler):
        assert {x.sharding.memory_kind for x in jax.tree.leaves(part.variables)} == {"pinned_host"}
    np.testing.assert_array_equal(unclip.imagine(["a cat", "a dog"], 1, **QUICK), images)
    with pytest.raises(ValueError, match="has no image tower, which embeddings of images need: load it with clip="):
        unclip.vary(pictures[0])
    with pytest.raises(LoadError, match="has another text tower than .*karlo"):
        dalle_jax.load_unclip(KARLO, clip=clip)
    with pytest.raises(ValueError, match="has no covariance of embeddings"):
        unclip.principal(pictures[0], [1])


def test_any_prior_for_the_same_clip_may_replace_a_run_s(tiny_decoder, tiny_autoregressive_prior):
    """Without a diffusion, sampling has no number of steps."""
    unclip = dalle_jax.load_unclip(tiny_decoder[1], prior=tiny_autoregressive_prior[1])
    drawing = unclip.draw(["the digit one"], 2, steps=3, prior_steps=5000, prior_guidance=2.0, progress=False)
    assert drawing.images.shape == (1, 2, 8, 8, 3) and abs(drawing.embeddings[0, 0] - drawing.embeddings[0, 1]).max() > 1e-3


def test_karlo_with_its_clip_varies_and_edits_images(karlo_unclip, golden, pictures):
    prompts = golden["prompts"].tolist()
    np.testing.assert_allclose(karlo_unclip._embed_texts(prompts), golden["text_embedding"][2:], atol=1e-5)
    unit = golden["text_embedding"][2:] / np.linalg.norm(golden["text_embedding"][2:], axis=1, keepdims=True)
    np.testing.assert_allclose(karlo_unclip.clip.encode_text(prompts), unit, atol=1e-5)
    again = karlo_unclip.reconstruct(pictures, steps=3)
    assert again.shape == (2, 32, 32, 3) and abs(again[0].astype(int) - again[1]).mean() > 5
    still, moved = (karlo_unclip.vary(pictures[0], 2, eta=eta, steps=3) for eta in (0.0, 1.0))
    assert abs(still[0].astype(int) - again[0]).max() <= 1, "its own embedding and noise"
    assert abs(still[0].astype(int) - moved[0]).mean() > 0.5
    edited = karlo_unclip.edit(pictures[0], *prompts, [0.0, 0.5], steps=3)
    assert abs(edited[0].astype(int) - again[0]).max() <= 1
    assert abs(edited[1].astype(int) - again[0]).mean() > 0.5


def test_parts_that_do_not_belong_together_are_refused(tiny_decoder, tiny_prior, tiny_upsampler, tmp_path, clip):
    with pytest.raises(LoadError, match="is no run directory, and karlo has an upsampler of its own"):
        dalle_jax.load_unclip(KARLO, upsampler=tiny_upsampler[1])
    with pytest.raises(LoadError, match="which contains its CLIP; leave clip out"):
        dalle_jax.load_unclip(tiny_decoder[1], clip="somewhere")
    with pytest.raises(LoadError, match="is a run of 'dalle_jax.unclip.prior_task', not of a decoder"):
        dalle_jax.load_unclip(tiny_prior[1])
    with pytest.raises(LoadError, match="not of an upsampler"):
        dalle_jax.load_unclip(tiny_decoder[1], upsampler=tiny_prior[1])
    with pytest.raises(LoadError, match="is not an unCLIP: there is no such folder"):
        dalle_jax.load_unclip(tmp_path / "none")
    variables = jax.tree.map(lambda x: np.asarray(x) * 1.5, clip.variables)
    other = Clip.assemble(clip.module, variables, clip.tokenizer, clip.preprocess, "other")
    checkpoint = prior_lib.open_checkpoint(tiny_prior[1])
    other_prior = dataclasses.replace(checkpoint, clip=other.fingerprint)
    (tmp_path / "prior.safetensors").write_bytes(prior_lib.to_bytes(other_prior))
    with pytest.raises(LoadError, match="is a prior for another CLIP"):
        dalle_jax.load_unclip(tiny_decoder[1], prior=tmp_path / "prior.safetensors")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n = 0 must be an integer, at least 1"),
        ({"seed": -1}, "seed = -1 must be an integer in"),
        ({"steps": 1}, r"steps = 1 must be an integer in \[2, 1000\]"),
        ({"prior_steps": 1001}, "prior_steps = 1001 must be"),
        ({"eta": 1.5}, r"eta = 1.5 must be in \[0, 1\]"),
        ({"guidance": float("nan")}, "guidance = nan must be"),
        ({"best": 1}, "best needs a ranking"),
        ({"best": 3, "rerank": "x"}, r"best = 3 must be in \[1, n = 1\]"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_before_work(unclip, options, message):
    with pytest.raises(ValueError, match=message):
        unclip.imagine(["the digit one"], **options)


def test_wrong_inputs_of_other_methods_are_refused(unclip, pictures):
    with pytest.raises(TypeError, match=r"prompts must be a list of strings, not one str: write \[text\]"):
        unclip.imagine("the digit one")
    with pytest.raises(TypeError, match=r"prompts\[0\] is a int"):
        unclip.imagine([1])
    with pytest.raises(ValueError, match="prompts must be a list of at least one"):
        unclip.imagine([])
    with pytest.raises(ValueError, match=r"count = 1 must be an integer, at least 2"):
        unclip.between(*pictures, 1)
    with pytest.raises(ValueError, match=r"strength = 2 must be a fraction in \[0, 1\]"):
        unclip.edit(pictures[0], "a", "b", 2)
    with pytest.raises(ValueError, match="have the same embedding"):
        unclip.edit(pictures[0], "two", "two")
    with pytest.raises(ValueError, match=r"dims = 13 must be integers in \[0, 12\]"):
        unclip.principal(pictures[0], [13])
    without = dataclasses.replace(unclip, prior=None)
    with pytest.raises(ValueError, match="has no prior, which makes embeddings of texts: load it with prior="):
        without.imagine(["a"])


def test_pushed_parts_are_opened_by_the_code_of_their_cards(
    tiny_decoder, tiny_prior, tiny_upsampler, unclip, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    decoder = {"path/to/a/decoder": tiny_decoder[1]}
    with hub_server.serve(monkeypatch) as hub, mock.patch.object(dalle_jax.Unclip, "imagine", autospec=True) as imagine:
        opened = model_cards.push_and_open(tiny_decoder[1], hub, tmp_path / "decoder", "dalle_jax")["unclip"]
        assert opened.fingerprint == unclip.fingerprint
        imagine.assert_called_once_with(opened, ["a red circle"], n=4)
        model_cards.push_and_open(tiny_prior[1], hub, tmp_path / "prior", "dalle_jax", **decoder)
        opened = model_cards.push_and_open(tiny_upsampler[1], hub, tmp_path / "upsampler", "dalle_jax", **decoder)["unclip"]
        assert opened.size == 16
