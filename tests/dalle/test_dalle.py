"""The loaded model: pictures that depend on their seed alone, guidance at every step, probabilities counted by hand."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

import dalle_jax
from dalle_jax import model as model_lib
from train_jax.errors import LoadError

PROMPTS = ["the digit three", "a handwritten 7", "zero"]


@pytest.fixture(scope="module")
def strong(trained):
    """The trained model with weights so large that prompts and codes matter."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(np.asarray, trained.variables)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params)
    options = model_lib.defaults()
    options.update({"text_length": 12, "width": 16, "depth": 2, "heads": 2})
    return dalle_jax.Dalle.assemble(options, params, trained.captions, trained.vqgan, trained.size, "strong")


def whole_stream(dalle, prompts, guidance=1.0):
    """The most likely codes, the whole stream computed anew for each."""
    text = dalle.captions.encode(prompts)
    nothing = np.repeat(dalle.captions.encode([""]), len(text), axis=0)
    codes = np.zeros((len(text), dalle.module.length), np.int32)
    for place in range(dalle.module.length):
        told, untold = (dalle.logits(t, codes)[1][:, place] for t in (text, nothing))
        codes[:, place] = np.argmax(untold + guidance * (told - untold), axis=1)
    return codes.reshape(len(text), *dalle.grid)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_cached_scan_is_what_whole_streams_say_at_every_step(strong, guidance):
    # At temperature 0 one wrong logit, or guidance that is lost after the first code, would change all that follows.
    found = strong.draw(PROMPTS, temperature=0, guidance=guidance, progress=False)
    np.testing.assert_array_equal(found.codes[:, 0], whole_stream(strong, PROMPTS, guidance))
    if guidance != 1:
        assert (found.codes[:, 0] != whole_stream(strong, PROMPTS)).any()


def test_a_picture_depends_on_its_prompt_seed_and_number_alone(strong):
    whole = strong.draw(PROMPTS, 5, seed=3, progress=False, guidance=1.5)
    np.testing.assert_array_equal(
        whole.codes[1:], strong.draw(PROMPTS[1:], 5, seed=3, progress=False, guidance=1.5).codes
    )
    for batch_size in (2, 7):
        again = strong.draw(PROMPTS, 5, seed=3, batch_size=batch_size, guidance=1.5)
        np.testing.assert_array_equal(whole.codes, again.codes)
        np.testing.assert_array_equal(whole.images, again.images)
        np.testing.assert_allclose(whole.log_probs, again.log_probs, rtol=1e-5)
    few = strong.draw(PROMPTS[:1], 2, seed=3, progress=False, guidance=1.5)
    np.testing.assert_array_equal(whole.codes[:1, :2], few.codes)
    assert (strong.draw(PROMPTS, 5, seed=4, progress=False).codes != whole.codes).any()
    assert len({c.tobytes() for c in whole.codes.reshape(15, -1)}) > 10
    assert whole.images.shape == (3, 5, 16, 16, 3) and whole.images.dtype == np.uint8
    np.testing.assert_array_equal(
        whole.images.reshape(15, 16, 16, 3), np.round(255 * strong.vqgan.decode(whole.codes.reshape(15, 4, 4)))
    )


def test_other_numbers_need_no_other_program(strong):
    strong.draw(PROMPTS[:1], 2, temperature=0.7, top_p=0.9, guidance=1.5, progress=False)
    program = strong._generation.advance
    before = program._cache_size()
    for temperature, top_p, guidance in ((1.3, 0.5, 4.0), (0.0, 0.99, -1.0)):
        strong.draw(PROMPTS[:1], 2, temperature=temperature, top_p=top_p, guidance=guidance, progress=False)
    assert program._cache_size() == before
    strong.draw(PROMPTS[:1], 2, top_k=5, progress=False)
    after = program._cache_size()
    for top_k in (6, 7, 8):
        strong.draw(PROMPTS[:1], 2, top_k=top_k, progress=False)
    assert program._cache_size() == after


def test_samples_are_as_frequent_as_their_probability(strong):
    """The first two codes of many pictures, against the probabilities that whole streams give."""
    prompt, n = PROMPTS[:1], 4000
    drawn = strong.draw(prompt, n, batch_size=2000, progress=False).codes[0].reshape(n, -1)
    text = strong.captions.encode(prompt)
    first = softmax(strong.logits(text, np.zeros((1, 16), np.int32))[1][0, 0])
    starts = np.zeros((12, 16), np.int32)
    starts[:, 0] = np.arange(12)
    second = softmax(strong.logits(np.repeat(text, 12, axis=0), starts)[1][:, 1])
    wanted = first[:, None] * second
    found = np.zeros((12, 12))
    np.add.at(found, (drawn[:, 0], drawn[:, 1]), 1 / n)
    assert np.all(np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / n) + 1e-3)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_log_probabilities_are_the_models_own_and_what_score_says(strong):
    drawn = strong.draw(PROMPTS, 2, temperature=0.7, top_p=0.9, guidance=2.0, progress=False)
    text = strong.captions.encode(PROMPTS)
    for p, s in itertools.product(range(3), range(2)):
        codes = drawn.codes[p, s].reshape(1, -1)
        rows = np.log(softmax(strong.logits(text[p : p + 1], codes)[1][0]))
        assert drawn.log_probs[p, s] == pytest.approx(rows[np.arange(16), codes[0]].sum(), rel=1e-4)
    # Of pictures whose codes are known: encoding a decoded picture may give others.
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    scores = strong.score(PROMPTS, images, batch_size=4)
    codes = strong.vqgan.encode(images).reshape(2, -1)
    assert scores.shape == (2, 3)
    for i, p in itertools.product(range(2), range(3)):
        rows = np.log(softmax(strong.logits(text[p : p + 1], codes[i : i + 1])[1][0]))
        assert scores[i, p] == pytest.approx(rows[np.arange(16), codes[i]].sum(), rel=1e-4)
    np.testing.assert_allclose(strong.score(PROMPTS, [Image.fromarray(x) for x in images]), scores, rtol=1e-5)


def test_kept_codes_stay_and_the_rest_follows_from_them(strong):
    picture = np.random.default_rng(5).integers(0, 256, (40, 40, 3), np.uint8)
    codes = strong._codes([picture])[0]
    keep = np.zeros((4, 4), bool)
    keep[0], keep[2, 1] = True, True
    drawn = strong.draw(PROMPTS[:2], 3, init_image=picture, keep=keep, temperature=1.5, progress=False)
    assert (drawn.codes[..., keep] == codes[keep]).all() and (drawn.codes[..., ~keep] != codes[~keep]).any()
    # The most likely codes after the kept ones, by whole streams.
    greedy = strong.draw(PROMPTS[:1], init_image=picture, keep=keep, temperature=0, progress=False).codes[0, 0].ravel()
    for place in range(16):
        if not keep.ravel()[place]:
            logits = strong.logits(strong.captions.encode(PROMPTS[:1]), greedy[None])[1][0, place]
            assert greedy[place] == np.argmax(logits)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_previews_grow_and_change_nothing(strong, rows):
    seen = []
    plain = strong.draw(PROMPTS, 3, progress=False, guidance=2.0)
    shown = strong.draw(
        PROMPTS, 3, progress=False, guidance=2.0, batch_size=6, preview_rows=rows,
        preview=lambda first, done, images: seen.append((first, done, images)),
    )  # fmt: skip
    np.testing.assert_array_equal(plain.images, shown.images)
    steps = [*range(rows, 4, rows), 4]
    assert [(first, done) for first, done, _ in seen] == [(first, done) for first in (0, 6) for done in steps]
    for first, done, images in seen:
        assert (images[:, 4 * done :] == 127).all() and (images[:, : 4 * done] != 127).any()
        if done == 4:  # decoded together as the preview was: in a batch of another size a shade may round otherwise
            codes = plain.codes.reshape(9, 4, 4)[first : first + len(images)]
            np.testing.assert_array_equal(images, np.round(255 * strong.vqgan.decode(codes)).astype(np.uint8))


class Darkness:
    """Stands in for a CLIP: what is dark fits best."""


def test_ranking_puts_the_best_first(strong, monkeypatch):
    plain = strong.draw(PROMPTS, 6, progress=False)
    ranked = strong.draw(PROMPTS, 6, rerank="likelihood", best=4, progress=False)
    order = np.argsort(-plain.log_probs, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(ranked.samples, order)
    np.testing.assert_array_equal(ranked.codes, np.take_along_axis(plain.codes, order[..., None, None], axis=1))
    np.testing.assert_array_equal(ranked.images, np.take_along_axis(plain.images, order[..., None, None, None], axis=1))
    np.testing.assert_allclose(ranked.scores, np.take_along_axis(plain.log_probs, order, axis=1))

    from dalle_jax import dalle as dalle_module

    monkeypatch.setattr(dalle_module, "open_judge", lambda judge: judge)
    monkeypatch.setattr(dalle_module, "fit", lambda judge, prompts, images: -images.mean((2, 3, 4)).astype(np.float32))
    dark = strong.draw(PROMPTS, 6, rerank=Darkness(), best=1, progress=False)
    np.testing.assert_array_equal(dark.samples[:, 0], plain.images.mean((2, 3, 4)).argmin(1))


def test_prompts_that_are_empty_strange_or_too_long(strong, caplog):
    images = strong.generate(["", "☃ ∑ 漢字 \x00", "a " * 50], progress=False)
    assert images.shape == (3, 1, 16, 16, 3)
    assert "longer than the 12 tokens this model reads and were cut" in caplog.text


def test_a_prompt_that_occurs_again_gets_other_pictures(strong):
    whole = strong.draw(["three"], 4, progress=False)
    twice = strong.draw(("three", "four", "three"), 2, progress=False)
    np.testing.assert_array_equal(twice.codes[[0, 2]].reshape(whole.codes.shape), whole.codes)
    assert twice.samples.tolist() == [[0, 1], [0, 1], [2, 3]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n = 0 must be a whole number, at least 1"),
        ({"seed": -1}, "seed = -1 must be a whole number in"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"top_k": 0}, r"top_k = 0 must be in \[1, 12\]"),
        ({"top_k": 13}, "top_k = 13"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"preview_rows": 5}, "preview_rows = 5"),
        ({"best": 1}, "name by `rerank`"),
        ({"best": 2, "rerank": "likelihood"}, r"best = 2 must be in \[1, n = 1\]"),
        ({"keep": np.ones((4, 4), bool)}, "init_image and keep belong together"),
        ({"init_image": np.zeros((9, 9, 3), np.uint8), "keep": np.ones((2, 4), bool)}, r"keep is \[2, 4\]"),
    ],
)
def test_arguments_that_cannot_be_are_refused(strong, options, message):
    with pytest.raises(ValueError, match=message):
        strong.draw(PROMPTS[:1], **options)


def test_lists_are_asked_for(strong):
    with pytest.raises(TypeError, match="write \\[text\\]"):
        strong.generate("a red circle")
    with pytest.raises(ValueError, match="at least one text"):
        strong.generate([])
    with pytest.raises(TypeError, match="it must be a CLIP"):
        strong.generate(PROMPTS, rerank=3)
    with pytest.raises(LoadError, match="no such file"):
        strong.generate(PROMPTS, rerank="nowhere")
    with pytest.raises(ValueError, match="this model has 0 to 11"):
        strong.logits(strong.captions.encode(PROMPTS[:1]), np.full((1, 16), 12))
    with pytest.raises(ValueError, match=r"text_ids must be \[1, 12\]"):
        strong.logits(np.zeros((1, 3), np.int32), np.zeros((1, 16), np.int32))


def test_a_run_of_another_kind_or_with_other_files_is_refused(tiny, trained, tmp_path):
    import shutil

    assert trained.name.endswith("(step 4)") and len(trained.fingerprint) == 64
    copy = tmp_path / "run"
    shutil.copytree(tiny[1], copy)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    with pytest.raises(LoadError, match="wrong tokenizer for the weights"):
        dalle_jax.load(copy)
    (copy / "config.json").write_text('{"task": "clip_jax.task"}')
    with pytest.raises(LoadError, match="is a run of 'clip_jax.task', not of a DALL·E"):
        dalle_jax.load(copy)


def test_guidance_is_refused_to_a_run_that_hid_no_captions(tiny, tmp_path):
    import json
    import shutil

    shutil.copytree(tiny[1], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"caption_dropout": 0.0}))
    with pytest.raises(ValueError, match="guidance = 1.5: .* train with caption_dropout above 0"):
        dalle_jax.load(tmp_path / "run").draw(PROMPTS, guidance=1.5)


def test_weights_of_another_model_are_listed(strong, trained):
    params = jax.tree.map(np.asarray, strong.variables)
    options = model_lib.defaults()
    options.update({"text_length": 12, "width": 16, "depth": 2, "heads": 2, "positions": "learned"})
    with pytest.raises(
        LoadError, match=r"different models:\s+columns: \(4, 16\), where nothing belongs\s+positions: missing"
    ):
        dalle_jax.Dalle.assemble(options, params, trained.captions, trained.vqgan, 16, "mixed")
