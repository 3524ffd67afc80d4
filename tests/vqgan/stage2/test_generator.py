"""The loaded model: samples that depend on their seed only, guidance at every step, probabilities computed by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nn_jax.decoding import Sampling, sample_code
from train_jax.errors import LoadError
from vqgan_jax.stage2 import generator as generator_lib
from vqgan_jax.stage2 import model
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.generator import CodeGenerator

CONDITIONS = {"class": [3, None, 7], "text": ["the digit three", "", "a handwritten seven"]}
RNG = np.random.default_rng(5)
PICTURE = RNG.integers(0, 256, (40, 40, 3), np.uint8)


def conditions_of(generator) -> list:
    return CONDITIONS[generator.condition.kind]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def guided_logits(generator, conditions, codes, guidance=1.0):
    """Computes logits of complete sequences: [conditions, codes, vocabulary]."""
    tokens = generator.condition.encode(conditions)
    null = np.broadcast_to(generator.condition.null, tokens.shape)
    both = generator.logits(np.concatenate([tokens, null]), np.concatenate([codes, codes]))[1]
    conditional, unconditional = both[: len(tokens)], both[len(tokens) :]
    return unconditional + guidance * (conditional - unconditional)


def greedy(generator, conditions, guidance=1.0):
    """Samples the most likely codes without a cache: a forward pass of the complete sequence for each code."""
    codes = np.zeros((len(conditions), generator.module.length), np.int32)
    for position in range(generator.module.length):
        codes[:, position] = np.argmax(guided_logits(generator, conditions, codes, guidance)[:, position], axis=1)
    return codes.reshape(len(conditions), *generator.grid)


@pytest.mark.parametrize(
    "name, guidance", [("by_text", 1.0), ("by_text", 3.0), ("by_class", 3.0), ("by_encoded_text", 3.0)]
)
def test_cached_sampling_is_that_of_complete_sequences(request, name, guidance):
    generator = request.getfixturevalue(name)
    # At temperature 0 one wrong logit, or guidance that is lost after the first code, would change all that follows.
    codes = generator.draw(conditions_of(generator), temperature=0, guidance=guidance, progress=False).codes[:, 0]
    np.testing.assert_array_equal(codes, greedy(generator, conditions_of(generator), guidance))
    if guidance != 1:
        assert (codes != greedy(generator, conditions_of(generator))).any()


def test_a_sample_depends_on_its_condition_seed_and_index_only(by_class):
    conditions = conditions_of(by_class)
    drawing = by_class.draw(conditions, 5, seed=3, progress=False, guidance=1.5)
    np.testing.assert_array_equal(
        drawing.codes[1:], by_class.draw(conditions[1:], 5, seed=3, progress=False, guidance=1.5).codes
    )
    for batch_size in (2, 7):
        again = by_class.draw(conditions, 5, seed=3, batch_size=batch_size, guidance=1.5)
        np.testing.assert_array_equal(drawing.codes, again.codes)
        np.testing.assert_array_equal(drawing.images, again.images)
        np.testing.assert_allclose(drawing.log_probs, again.log_probs, rtol=1e-5)
    few = by_class.draw(conditions[:1], 2, seed=3, progress=False, guidance=1.5)
    np.testing.assert_array_equal(drawing.codes[:1, :2], few.codes)
    other = by_class.draw(conditions, 5, seed=[4, 3, 3], progress=False, guidance=1.5)
    np.testing.assert_array_equal(other.codes[1:], drawing.codes[1:])
    assert (other.codes[0] != drawing.codes[0]).any()
    assert len({c.tobytes() for c in drawing.codes.reshape(15, -1)}) > 10
    assert drawing.images.shape == (3, 5, 16, 16, 3) and drawing.images.dtype == np.uint8
    pictures = np.round(255 * by_class.vqgan.decode(drawing.codes.reshape(15, 4, 4)))
    np.testing.assert_array_equal(drawing.images.reshape(15, 16, 16, 3), pictures)


def test_a_repeated_condition_gets_other_samples(generator):
    a, b, _ = conditions_of(generator)
    drawing = generator.draw([a], 4, progress=False)
    twice = generator.draw((a, b, a), 2, progress=False)
    np.testing.assert_array_equal(twice.codes[[0, 2]].reshape(drawing.codes.shape), drawing.codes)
    assert twice.samples.tolist() == [[0, 1], [0, 1], [2, 3]]


def test_without_conditions_it_samples_without_condition(generator):
    none = generator.draw([generator.condition.none], 4, progress=False)
    np.testing.assert_array_equal(generator.generate(n=4, progress=False), none.images)


def test_other_sampling_options_need_no_compilation(by_text):
    conditions = conditions_of(by_text)[:1]
    by_text.draw(conditions, 2, temperature=0.7, top_p=0.9, guidance=1.5, progress=False)
    program = by_text._programs.decode_chunk
    before = program._cache_size()
    for temperature, top_p, guidance in ((1.3, 0.5, 4.0), (0.0, 0.99, -1.0)):
        by_text.draw(conditions, 2, temperature=temperature, top_p=top_p, guidance=guidance, progress=False)
    assert program._cache_size() == before
    by_text.draw(conditions, 2, top_k=5, progress=False)
    after = program._cache_size()
    for top_k in (6, 7, 8):
        by_text.draw(conditions, 2, top_k=top_k, progress=False)
    assert program._cache_size() == after


def test_filters_of_all_codes_change_nothing(by_class):
    plain = by_class.draw([3], 2, progress=False).codes
    for filters in ({"top_p": 1.0}, {"top_k": 12}):
        np.testing.assert_array_equal(by_class.draw([3], 2, progress=False, **filters).codes, plain)


def test_other_numbers_of_samples_need_no_compilation(by_text):
    """Neither does a last batch that is not full, nor another number of conditions, or of samples of the same divisor."""
    conditions = conditions_of(by_text)
    by_text.draw(conditions, 7, batch_size=16, guidance=1.5, progress=False)  # 16 and 5 pictures
    programs = by_text._programs.decode_chunk, by_text._programs.prefill
    before = [program._cache_size() for program in programs]
    for some, n in ((conditions, 5), (conditions, 9), (conditions[:2] * 2, 5)):
        by_text.draw(some, n, batch_size=16, guidance=1.5, progress=False)
    assert [program._cache_size() for program in programs] == before


def test_samples_are_as_frequent_as_their_probability(by_text):
    """The first two codes of many pictures, against the probabilities of complete sequences."""
    condition, n = conditions_of(by_text)[:1], 4000
    codes = by_text.draw(condition, n, batch_size=2000, progress=False).codes[0].reshape(n, -1)
    first = np.exp(log_softmax(guided_logits(by_text, condition, np.zeros((1, 16), np.int32))[0, 0]))
    starts = np.zeros((12, 16), np.int32)
    starts[:, 0] = np.arange(12)
    second = np.exp(log_softmax(guided_logits(by_text, condition * 12, starts)[:, 1]))
    expected = first[:, None] * second
    frequencies = np.zeros((12, 12))
    np.add.at(frequencies, (codes[:, 0], codes[:, 1]), 1 / n)
    assert np.all(np.abs(frequencies - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-3)


def test_log_probabilities_are_the_model_s_own_and_those_of_score(by_text):
    conditions = conditions_of(by_text)
    drawing = by_text.draw(conditions, 2, temperature=0.7, top_p=0.9, guidance=2.0, progress=False)
    for p, s in itertools.product(range(3), range(2)):
        codes = drawing.codes[p, s].reshape(1, -1)
        rows = log_softmax(guided_logits(by_text, conditions[p : p + 1], codes)[0])
        assert drawing.log_probs[p, s] == pytest.approx(rows[np.arange(16), codes[0]].sum(), rel=1e-4)
    # Of pictures whose codes are known: encoding a decoded picture may give others.
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    scores = by_text.score(conditions, images, batch_size=4)
    codes = by_text.vqgan.encode(images).reshape(2, -1)
    assert scores.shape == (2, 3)
    for i, p in itertools.product(range(2), range(3)):
        rows = log_softmax(guided_logits(by_text, conditions[p : p + 1], codes[i : i + 1])[0])
        assert scores[i, p] == pytest.approx(rows[np.arange(16), codes[i]].sum(), rel=1e-4)
    np.testing.assert_allclose(by_text.score(conditions, [Image.fromarray(x) for x in images]), scores, rtol=1e-5)


def test_kept_codes_stay_and_condition_the_others(by_text):
    """Complete rows of kept codes are prefilled with the condition; the scan takes the others."""
    conditions, codes = conditions_of(by_text), by_text._encode_images([PICTURE])[0]
    keep = np.zeros((4, 4), bool)
    keep[0], keep[2, 1] = True, True
    drawing = by_text.draw(conditions[:2], 3, init_image=PICTURE, keep=keep, temperature=1.5, progress=False)
    assert (drawing.codes[..., keep] == codes[keep]).all() and (drawing.codes[..., ~keep] != codes[~keep]).any()
    rows = log_softmax(guided_logits(by_text, conditions[1:2], drawing.codes[1, 2].reshape(1, -1))[0])
    nats = rows[np.arange(16), drawing.codes[1, 2].ravel()]
    assert drawing.log_probs[1, 2] == pytest.approx(nats[~keep.ravel()].sum(), rel=1e-4), "of what was sampled"
    # The most likely codes after the kept ones, by complete sequences.
    options = {"init_image": PICTURE, "keep": keep, "temperature": 0, "guidance": 2.0, "progress": False}
    best = by_text.draw(conditions[:1], **options).codes[0, 0].ravel()
    logits = guided_logits(by_text, conditions[:1], best[None], 2.0)[0]
    for position in np.flatnonzero(~keep.ravel()):
        assert best[position] == np.argmax(logits[position])


def test_an_image_of_kept_codes_stays(by_text):
    drawing = by_text.draw(conditions_of(by_text)[:1], 2, init_image=PICTURE, keep=np.ones((4, 4), bool))
    np.testing.assert_array_equal(drawing.codes[0, 1], by_text._encode_images([PICTURE])[0])
    assert not drawing.log_probs.any()


@pytest.mark.parametrize("name, guidance", [("by_class", 1.0), ("by_text", 3.0)])
def test_a_large_image_is_sampled_window_by_window(request, name, guidance):
    """Its first window is as the picture of one; every later code follows from its own window, without a cache."""
    generator, previews = request.getfixturevalue(name), []
    conditions, options = conditions_of(generator)[:2], {"temperature": 0, "guidance": guidance, "progress": False}
    drawing = generator.draw(
        conditions, size=(24, 28), stride=2, preview=lambda *preview: previews.append(preview), preview_rows=4, **options
    )
    codes = drawing.codes[:, 0]
    assert codes.shape == (2, 6, 7) and drawing.images.shape == (2, 1, 24, 28, 3)
    np.testing.assert_array_equal(codes[:, :4, :4], generator.draw(conditions, **options).codes[:, 0])
    known, nats = np.zeros((6, 7), bool), 0
    for top, left in itertools.product((0, 2), (0, 2, 3)):
        part = np.s_[top : top + 4, left : left + 4]
        fresh, inside = ~known[part], codes[:, *part].reshape(2, -1)
        logits = guided_logits(generator, conditions, inside, guidance)
        np.testing.assert_array_equal(codes[:, *part][:, fresh], logits.argmax(-1).reshape(2, 4, 4)[:, fresh])
        log_probs = log_softmax(guided_logits(generator, conditions, inside))
        log_probs = np.take_along_axis(log_probs, inside[..., None], axis=2)
        nats = nats + log_probs.reshape(2, 4, 4)[:, fresh].sum(axis=1)
        known[part] = True
    np.testing.assert_allclose(drawing.log_probs[:, 0], nats, rtol=1e-4)
    # Previews: rows are done when their last window is; what no window has reached is grey.
    assert [(first, done) for first, done, _ in previews] == [(0, 0), (0, 0), (0, 4), (0, 4), (0, 4), (0, 6)]
    assert (previews[0][2][:, 16:] == 127).all() and (previews[0][2][:, :16, 16:] == 127).all()
    np.testing.assert_array_equal(previews[-1][2], drawing.images[:, 0])


def test_codes_of_a_large_image_are_kept(by_class, tmp_path):
    picture, keep, file = RNG.integers(0, 256, (24, 28, 3), np.uint8), RNG.random((6, 7)) < 0.5, tmp_path / "large.png"
    Image.fromarray(picture).save(file)
    options = {"size": (24, 28), "stride": 2, "keep": keep, "progress": False}
    codes = by_class.draw([3], 3, init_image=picture, **options).codes[0]
    np.testing.assert_array_equal(by_class.draw([3], 3, init_image=file, **options).codes[0], codes)
    expected = by_class.vqgan.encode(picture[None])[0][keep]
    np.testing.assert_array_equal(codes[:, keep], np.broadcast_to(expected, (3, keep.sum())))
    assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize("name, rows", [("by_text", 1), ("by_class", 3), ("by_class", 4)])
def test_previews_grow_and_change_nothing(request, name, rows):
    generator, previews = request.getfixturevalue(name), []
    conditions = conditions_of(generator)
    plain = generator.draw(conditions, 3, progress=False, guidance=2.0)
    with_previews = generator.draw(
        conditions, 3, progress=False, guidance=2.0, batch_size=6, preview_rows=rows,
        preview=lambda first, done, images: previews.append((first, done, images)),
    )  # fmt: skip
    np.testing.assert_array_equal(plain.images, with_previews.images)
    steps = [*range(rows, 4, rows), 4]
    assert [(first, done) for first, done, _ in previews] == [(first, done) for first in (0, 6) for done in steps]
    for first, done, images in previews:
        assert (images[:, 4 * done :] == 127).all() and (images[:, : 4 * done] != 127).any()
        if done == 4:  # decoded together as the preview was: in a batch of another size a shade may round otherwise
            codes = plain.codes.reshape(9, 4, 4)[first : first + len(images)]
            np.testing.assert_array_equal(images, np.round(255 * generator.vqgan.decode(codes)).astype(np.uint8))


def test_ranking_puts_the_best_first(generator, monkeypatch):
    conditions = conditions_of(generator)
    plain = generator.draw(conditions, 6, progress=False)
    ranked = generator.draw(conditions, 6, rerank="likelihood", best=4, progress=False)
    order = np.argsort(-plain.log_probs, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(ranked.samples, order)
    np.testing.assert_array_equal(ranked.codes, np.take_along_axis(plain.codes, order[..., None, None], axis=1))
    np.testing.assert_array_equal(ranked.images, np.take_along_axis(plain.images, order[..., None, None, None], axis=1))
    np.testing.assert_allclose(ranked.scores, np.take_along_axis(plain.log_probs, order, axis=1))
    assert plain.scores is None
    if generator.condition.kind != "text":
        with pytest.raises(ValueError, match="CLIP needs texts, this model has none; use 'likelihood'"):
            generator.draw(conditions, 6, rerank="runs/clip")
        return
    # A stand-in for a CLIP: what is dark fits best.
    monkeypatch.setattr(generator_lib, "open_reranker", lambda reranker, dtype: reranker)
    monkeypatch.setattr(
        generator_lib, "clip_scores", lambda clip, texts, images: -images.mean((2, 3, 4)).astype(np.float32)
    )
    dark = generator.draw(conditions, 6, rerank=object(), best=1, progress=False)
    np.testing.assert_array_equal(dark.samples[:, 0], plain.images.mean((2, 3, 4)).argmin(1))


def test_caches_hold_a_prompt_once_and_codes_as_far_as_they_are_written(by_text, monkeypatch):
    """On each of the eight devices one row of the prompt, one of the empty prompt, and 2 x 64 / 8 rows of codes."""
    shapes, programs = [], by_text._programs

    def decode_chunk(variables, settings, prefixes, carry, *arguments, **static):
        caches = [*prefixes[1], carry[1][1]]
        shapes.append(tuple(cache.keys.shape for cache in caches))
        assert {cache.values.addressable_shards[0].data.shape[0] for cache in caches} == {1, 16}
        return programs.decode_chunk(variables, settings, prefixes, carry, *arguments, **static)

    monkeypatch.setitem(by_text.__dict__, "_programs", programs._replace(decode_chunk=decode_chunk))
    by_text.draw(conditions_of(by_text)[:1], 64, guidance=2.0, progress=False)
    assert shapes == [((8, 2, 12, 8), (8, 2, 12, 8), (128, 2, room, 8)) for room in (4, 8, 12, 16)]


def test_an_int8_cache_is_nearly_exact(by_text):
    conditions = conditions_of(by_text)[:2]
    exact = by_text.draw(conditions, 8, guidance=1.5, temperature=0.5, progress=False)
    rounded = by_text.draw(conditions, 8, guidance=1.5, temperature=0.5, int8_cache=True, progress=False)
    same = (exact.codes == rounded.codes).reshape(16, 16)
    assert same[:, 0].all() and 0.5 < same.mean() <= 1, "a code may differ, and then those that follow"
    agreeing = same.all(axis=1)
    errors = np.abs(exact.log_probs - rounded.log_probs).ravel()[agreeing]
    assert agreeing.any() and 0 < errors.max() < 0.2, "nats of 16 codes"


def test_a_stream_is_the_drawing_in_parts(by_text):
    a, b, c = conditions_of(by_text)
    conditions, options = [a, b, a, c, b], {"seed": 3, "guidance": 1.5, "batch_size": 8, "progress": False}
    expected = by_text.draw(conditions, 3, **options)
    streamed = dict(by_text.stream(conditions, 3, **options))
    assert list(streamed) == [0, 1, 2, 3, 4]
    programs = by_text._programs.decode_chunk, by_text._programs.prefill
    before = [program._cache_size() for program in programs]
    rest = dict(by_text.stream(conditions, 3, only=[1, 2, 4], **options))
    assert [program._cache_size() for program in programs] == before, "an odd last batch is padded"
    assert list(rest) == [1, 2, 4]
    for index, drawing in (*streamed.items(), *rest.items()):
        np.testing.assert_array_equal(drawing.codes[0], expected.codes[index])
        np.testing.assert_array_equal(drawing.samples[0], expected.samples[index])
        np.testing.assert_allclose(drawing.log_probs[0], expected.log_probs[index], rtol=1e-5)
        np.testing.assert_array_equal(drawing.images, streamed[index].images)
        # Decoded in batches of another size, in which a shade may round otherwise.
        np.testing.assert_allclose(drawing.images[0].astype(int), expected.images[index], atol=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"first": [0, 1]}, r"first = \[0, 1\] must be 1 integers, at least 0"),
        ({"n": 0}, "n = 0 must be an integer, at least 1"),
        ({"seed": -1}, "seed = -1 must be an integer in"),
        ({"seed": [0, 1]}, r"seed = \[0, 1\] must be an integer in \[0, 2\^32\), or one for each condition"),
        ({"temperature": -0.1}, "temperature = -0.1 must be 0 or more"),
        ({"top_k": 0}, r"top_k = 0 must be in \[1, 12\]"),
        ({"top_k": 13}, "top_k = 13"),
        ({"top_p": 0.0}, r"top_p = 0.0 must be in \(0, 1\]"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"preview_rows": 5}, "preview_rows = 5"),
        ({"best": 1}, "best needs a ranking: set rerank"),
        ({"best": 2, "rerank": "likelihood"}, r"best = 2 must be in \[1, n = 1\]"),
        ({"size": (12, 16)}, "must be at least 16"),
        ({"size": (17, 16)}, "divisible by 4"),
        ({"size": (32, 32), "stride": 5}, r"stride = 5 must be in \[1, 4\]"),
        ({"keep": np.ones((4, 4), bool)}, "init_image and keep belong together"),
        ({"init_image": PICTURE, "keep": np.ones((2, 4), bool)}, r"keep has shape \[2, 4\]; an image has \[4, 4\] codes"),
        (
            {"init_image": PICTURE, "keep": np.ones((6, 7), bool), "size": (24, 28)},
            r"init_image has codes \[10, 10\]; the image to sample has \[6, 7\]",
        ),
    ],
)
def test_wrong_arguments_are_refused(by_text, options, message):
    with pytest.raises(ValueError, match=message):
        by_text.draw(conditions_of(by_text)[:1], **options)


def test_conditions_are_a_list_of_at_least_one(by_class, by_text):
    for call in (by_text.generate, lambda conditions: by_text.score(conditions, [PICTURE])):
        with pytest.raises(TypeError, match=r"conditions must be a list, not one str: write \[value\]"):
            call("a red circle")
        with pytest.raises(ValueError, match="a list of at least one"):
            call([])
    with pytest.raises(TypeError, match=r"conditions must be a list, not one int: write \[value\]"):
        by_class._check_conditions(3)


def test_tokens_and_codes_that_do_not_exist_are_refused(by_text):
    tokens = by_text.condition.encode(["three"])
    with pytest.raises(ValueError, match="image_codes 12 to 12: this model has 0 to 11"):
        by_text.logits(tokens, np.full((1, 16), 12))
    with pytest.raises(ValueError, match=r"condition_tokens must be \[1, 12\]"):
        by_text.logits(np.zeros((1, 3), np.int32), np.zeros((1, 16), np.int32))
    with pytest.raises(ValueError, match="images of 20 x 16 pixels; this model needs 16"):
        by_text.score(["three"], np.zeros((1, 20, 16, 3), np.uint8))


def test_weights_of_another_model_are_listed(by_text):
    params = jax.tree.map(np.asarray, by_text.variables)
    options = model.CodeTransformerOptions(width=16, depth=2, heads=2, positions="learned")
    lines = r"different models:\s+codes/columns: \(4, 16\), expected nothing\s+codes/positions: missing"
    with pytest.raises(LoadError, match=lines):
        CodeGenerator.assemble(options, params, by_text.condition, by_text.vqgan, 16, "mixed")
    joint = model.CodeTransformerOptions(width=16, depth=2, heads=2, vocabulary="joint")
    with pytest.raises(LoadError, match="mixed describes no model that can be built: config.model.vocabulary = 'joint'"):
        CodeGenerator.assemble(joint, params, ClassCondition(10), by_text.vqgan, 16, "mixed")


def test_a_fingerprint_changes_with_the_options(assemble, by_class):
    assert len(by_class.fingerprint) == 64
    assert assemble("class").fingerprint == by_class.fingerprint
    assert assemble("class", activation="gelu_tanh").fingerprint != by_class.fingerprint


SPARSE = {"attention": ("row", "column", "conv"), "last_attention": "row", "conv_window": 3, "depth": 3}


@pytest.mark.parametrize(
    "n, options",
    [
        (3, {"guidance": 2.5, "top_p": 0.9}),
        (16, {"batch_size": 16}),  # two rows of a device share the prefix of their condition
        (4, {"guidance": 0.5, "top_k": 7, "sparse": True, "keep": 2}),
        (2, {"guidance": 1.5, "temperature": 0.7, "sparse": True}),
    ],
)
def test_samples_are_those_of_complete_sequences(assemble, by_text, n, options):
    """Codes sampled with the same noise from logits that are computed anew for each code, without a cache."""
    options = dict(options)
    generator = assemble("text", **SPARSE) if options.pop("sparse", False) else by_text
    conditions, guidance, seed = conditions_of(generator)[:2], options.get("guidance", 1.0), 11
    keep, start = np.zeros((4, 4), bool), np.zeros(16, np.int32)
    if rows := options.pop("keep", 0):  # complete rows, which are prefilled
        keep[:rows] = True
        options |= {"init_image": PICTURE, "keep": keep}
        start = generator._encode_images([PICTURE])[0].ravel()
    drawing = generator.draw(conditions, n, seed=seed, progress=False, **options)
    keys = [
        functools.reduce(jax.random.fold_in, (generator.condition.seed(c), i), jax.random.key(seed))
        for c in conditions
        for i in range(n)
    ]
    settings = Sampling(options.get("temperature", 1.0), options.get("top_k", 0), options.get("top_p", 1.0))
    sample = jax.jit(
        jax.vmap(lambda key, logits, i: sample_code(jax.random.fold_in(key, i), logits, settings, True), (0, 0, None))
    )
    codes, rows = np.repeat(start[None], 2 * n, axis=0), [c for c in conditions for _ in range(n)]
    for position in np.flatnonzero(~keep.ravel()):
        logits = guided_logits(generator, rows, codes, guidance)[:, position]
        codes[:, position] = sample(jnp.stack(keys), jnp.asarray(logits), position)
    np.testing.assert_array_equal(drawing.codes.reshape(2 * n, 16), codes)
    assert len({c.tobytes() for c in codes}) > n
