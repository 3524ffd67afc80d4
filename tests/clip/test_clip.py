"""The loaded model: its methods against the module applied directly; intact and damaged run directories."""

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

import clip_jax
from clip_jax import LoadError
from clip_jax import clip as clip_module
from clip_jax import model as model_lib
from clip_jax.clip import Clip
from tests.trees import count_bytes
from train_jax.data.images import CLIP_MEAN, CLIP_STD, BrokenSample, Preprocess


@functools.cache
def compiled(module, method: str):
    return jax.jit(functools.partial(module.apply, method=method))


def by_hand_image(clip, picture: Image.Image) -> np.ndarray:
    """Encodes one picture by the module, preprocessed with Pillow and NumPy only."""
    size = clip.preprocess.size
    pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255
    pixels = jnp.asarray((pixels - CLIP_MEAN) / CLIP_STD, jnp.float32)
    return np.asarray(compiled(clip.module, "encode_image")(jax.device_get(clip.variables), pixels[None]))[0]


def by_hand_text(clip, text: str) -> np.ndarray:
    ids = jnp.asarray(clip.tokenizer.encode([text]))
    return np.asarray(compiled(clip.module, "encode_text")(jax.device_get(clip.variables), ids))[0]


# ---------------------------------------------------------------------------------------------------------------------
# Methods


def test_images_of_every_kind_are_encoded_as_by_hand(clip, captions, drawn, tmp_path):
    picture = drawn(captions[0])
    picture.save(tmp_path / "picture.png")
    np.testing.assert_array_equal(
        clip.encode_image(np.stack([picture, picture])), clip.encode_image([picture, picture]), "one array of several"
    )
    images = [picture, np.asarray(picture), tmp_path / "picture.png", str(tmp_path / "picture.png")]
    embeddings = clip.encode_image(images)
    assert embeddings.dtype == np.float32 and embeddings.shape == (4, 16)
    for row in embeddings:
        np.testing.assert_allclose(row, by_hand_image(clip, picture), rtol=1e-5, atol=1e-6)


def test_batches_do_not_mix_rows(clip, captions, drawn):
    pictures = [drawn(caption) for caption in captions]
    expected = np.stack([by_hand_image(clip, picture) for picture in pictures])
    for batch_size in (1, 5, 8, 64):
        np.testing.assert_allclose(clip.encode_image(pictures, batch_size), expected, rtol=1e-5, atol=1e-6)
    expected = np.stack([by_hand_text(clip, caption) for caption in captions])
    np.testing.assert_allclose(clip.encode_text(captions, 8), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-6)


def test_one_program_for_any_number_of_batches_split_over_all_devices(new_clip, captions, drawn):
    clip = new_clip(seed=3)
    clip.encode_image([drawn(caption) for caption in captions * 5], batch_size=16)  # 60: three batches and a part
    assert clip._programs.encode_image._cache_size() == 1
    leaf = jax.tree.leaves(clip.variables)[0]
    assert len(leaf.sharding.device_set) == jax.local_device_count() == 8
    compiled = clip._programs.encode_text.lower(
        clip.variables,
        jax.ShapeDtypeStruct(
            (16, clip.tokenizer.context_length),
            np.int32,
            sharding=jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec("batch")),
        ),
    ).compile()
    assert compiled.output_shardings.shard_shape((16, 16)) == (2, 16), "each device works on its own rows"


def test_no_inputs_give_no_rows(clip):
    assert clip.encode_image([]).shape == (0, 16)
    assert clip.encode_text([]).shape == (0, 16)


def test_similarity_is_the_scaled_cosine(clip, captions, drawn):
    pictures = [drawn(caption) for caption in captions[:3]]
    similarity = clip.similarity(pictures, captions)
    images = np.stack([by_hand_image(clip, picture) for picture in pictures])
    texts = np.stack([by_hand_text(clip, caption) for caption in captions])
    np.testing.assert_allclose(similarity, images @ texts.T / 0.07, rtol=1e-5, atol=1e-5)


def test_classify_averages_templates_and_applies_softmax(clip, captions, drawn):
    pictures, labels = [drawn(caption) for caption in captions[:4]], ["red circle", "blue square", "hat"]
    templates = ("a photo of a {}.", "{}, drawn: a {}")
    probabilities = clip.classify(pictures, labels, templates)
    classes = []
    for label in labels:
        mean = sum(by_hand_text(clip, template.replace("{}", label)) for template in templates) / 2
        classes.append(mean / np.linalg.norm(mean))
    logits = np.stack([by_hand_image(clip, picture) for picture in pictures]) @ np.stack(classes).T / 0.07
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_a_sigmoid_model_answers_for_each_label(new_clip, captions, drawn):
    clip = new_clip(loss="sigmoid", init_logit_bias=-4.0)
    pictures = [drawn(captions[0])]
    cosine = by_hand_image(clip, pictures[0]) @ by_hand_text(clip, "a red circle")
    logit = cosine / 0.07 - 4.0
    np.testing.assert_allclose(clip.similarity(pictures, ["a red circle"])[0, 0], logit, rtol=1e-5)
    probabilities = clip.classify(pictures, ["red circle"], ["a {}"])
    np.testing.assert_allclose(probabilities[0, 0], 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_a_long_text_is_cut_and_reported(clip, caplog):
    with caplog.at_level(logging.WARNING):
        embeddings = clip.encode_text(["a red circle", "red " * 100])
    assert np.isfinite(embeddings).all()
    assert "1 of 2 text(s) are longer than the 32 tokens" in caplog.text


def test_mistakes_are_named(clip, captions, drawn, tmp_path):
    picture = drawn(captions[0])
    with pytest.raises(TypeError, match=r"texts\[1\] is a NoneType, None; it must be a string"):
        clip_module._check_list(["a", None], "texts", str)
    with pytest.raises(TypeError, match="texts must be a list"):
        clip.encode_text("a red circle")
    for single in (np.asarray(picture), "photo.jpg"):
        with pytest.raises(TypeError, match="images must be a list"):
            clip.encode_image(single)
    with pytest.raises(TypeError, match="labels must be a list"):
        clip.classify([picture], "a cat")
    with pytest.raises(ValueError, match="at least one label"):
        clip.classify([picture], [])
    with pytest.raises(ValueError, match="'a photo' has no {}"):
        clip.classify([picture], ["cat"], ["a photo"])
    with pytest.raises(ValueError, match="batch_size = 0"):
        clip.encode_image([picture], 0)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(BrokenSample, match="broken.jpg: not a readable image"):
        clip.encode_image([picture, tmp_path / "broken.jpg"])


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprint


def test_the_fingerprint_changes_with_all_that_changes_an_embedding(clip, other_clip, new_clip):
    same = clip_jax.Clip.assemble(clip.module, jax.device_get(clip.variables), clip.tokenizer, clip.preprocess, "copy")
    assert same.fingerprint == clip.fingerprint
    reversed_order = {"params": dict(reversed(clip.variables["params"].items()))}
    again = clip_jax.Clip.assemble(clip.module, reversed_order, clip.tokenizer, clip.preprocess, "reordered")
    assert again.fingerprint == clip.fingerprint
    others = {
        "weights": other_clip,
        "activation": new_clip(activation="gelu"),
        "preprocess": clip_jax.Clip.assemble(
            clip.module, clip.variables, clip.tokenizer, dataclasses.replace(clip.preprocess, mode="squash"), "squash"
        ),
    }
    prints = {name: other.fingerprint for name, other in others.items()} | {"original": clip.fingerprint}
    assert len(set(prints.values())) == 4, prints


def test_two_parameters_that_swap_their_values_are_other_weights(clip):
    params = jax.device_get(clip.variables)["params"]
    tower = dict(params["vision"])
    names = [n for n in tower if isinstance(tower[n], dict) and set(tower[n]) == {"scale", "bias"}]
    tower[names[0]] = {"scale": tower[names[0]]["bias"], "bias": tower[names[0]]["scale"]}
    swapped = clip_jax.Clip.assemble(
        clip.module, {"params": params | {"vision": tower}}, clip.tokenizer, clip.preprocess, "swapped"
    )
    assert swapped.fingerprint != clip.fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# Run directories


def test_a_run_directory_opens_with_its_averaged_weights(tiny, trained):
    _, directory = tiny
    with warnings.catch_warnings(action="ignore"):  # Orbax advises against loading without shapes, as is done here
        saved = ocp.load_checkpointables(directory / "checkpoints" / "3", {"state": None})["state"]
    average, raw = saved["ema"]["clip"], saved["params"]["clip"]
    for mine, theirs in zip(jax.tree.leaves(trained.variables), jax.tree.leaves(average), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(average), jax.tree.leaves(raw), strict=True))
    assert trained.name == f"{directory} (step 3)"
    assert trained.fingerprint == clip_jax.load(str(directory)).fingerprint
    assert trained.fingerprint != clip_jax.load(directory, step=2).fingerprint
    assert clip_jax.load(directory, step=2).name.endswith("(step 2)")


def test_a_loaded_run_has_the_accuracy_that_the_evaluator_logged(tiny, trained):
    """Zero-shot accuracy by `classify` equals the metric that the run logged."""
    from train_jax.data.images import decode
    from train_jax.data.sources import open_source

    config, directory = tiny
    source = open_source("shapes/32", "test", data_dir=config.data.data_dir)
    records = [r for r in map(source.__getitem__, range(len(source))) if r["label"] >= 0]
    probabilities = trained.classify([decode(r["image"]) for r in records], source.label_names, ["a {}"])
    right = np.mean(probabilities.argmax(axis=1) == [r["label"] for r in records])
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = [line["test/top1"] for line in lines if "test/top1" in line]
    assert right == pytest.approx(logged[-1], abs=1e-6)


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the run directory, for changes."""
    return shutil.copytree(tiny[1], tmp_path / "run")


def test_a_wrong_tokenizer_is_refused(copy, clip):
    clip.tokenizer.save(copy / "tokenizer.json")
    digest = hashlib.sha256((copy / "tokenizer.json").read_bytes()).hexdigest()[:12]
    with pytest.raises(LoadError, match=f"wrong tokenizer for the weights: .*tokenizer.json has SHA-256 {digest}"):
        clip_jax.load(copy)


def test_wrong_preprocessing_is_refused(copy, clip):
    (copy / "preprocess.json").write_text(dataclasses.replace(clip.preprocess, mode="squash").to_json())
    with pytest.raises(LoadError, match="wrong preprocess.json for the weights"):
        clip_jax.load(copy)


def edit_model(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    config["model"].update(changes)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing: the weights need"),
        (
            lambda d: (d / "artifacts.json").unlink(),
            "artifacts.json cannot be read.*which tokenizer.json and which preprocess.json the weights need",
        ),
        (lambda d: (d / "artifacts.json").write_text("{}"), "does not mention tokenizer.json"),
        (
            lambda d: (d / "config.json").unlink(),
            "not a model: it holds .*artifacts.json.*load opens run directories",
        ),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
        (
            lambda d: (d / "config.json").write_text('{"task": "vqgan_jax.task"}'),
            "run of 'vqgan_jax.task', not of a CLIP",
        ),
        (lambda d: shutil.rmtree(d / "checkpoints"), "holds no checkpoint"),
        (lambda d: edit_model(d, embed_dim=32), r"text/proj/kernel has shape \(16, 32\) in the config.* and \(16, 16\)"),
        (lambda d: edit_model(d, loss="sigmoid"), "logit_bias has shape .* in the configuration and absent in the weights"),
        (lambda d: edit_model(d, activation="tanh"), "has invalid model options: .*tanh"),
    ],
)
def test_a_damaged_run_directory_says_what_is_wrong(copy, damage, words):
    damage(copy)
    with pytest.raises(LoadError, match=words):
        clip_jax.load(copy)


def test_the_newest_readable_checkpoint_is_loaded(copy, caplog):
    for file in (copy / "checkpoints" / "3").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert clip_jax.load(copy).name.endswith("(step 2)")
    assert "checkpoint" in caplog.text and "cannot be read" in caplog.text
    shutil.rmtree(copy / "checkpoints" / "2")
    with pytest.raises(LoadError, match="no checkpoint can be read"):
        clip_jax.load(copy)


def test_paths_that_are_no_model_are_described(tmp_path):
    with pytest.raises(LoadError, match="nowhere: no such file or folder. load opens run directories"):
        clip_jax.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(LoadError, match="notes.txt is not a model: it holds a .txt file. load opens run directories"):
        clip_jax.load(tmp_path / "notes.txt")
    other = tmp_path / "hub"
    other.mkdir()
    with pytest.raises(LoadError, match="it holds nothing"):
        clip_jax.load(other)
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(LoadError, match="hub is not a model: it holds config.json, model.safetensors"):
        clip_jax.load(other)


def test_a_heat_map_has_a_value_for_each_patch(clip, captions, drawn):
    pictures = [drawn(caption, (30, 24)) for caption in captions[:3]]
    maps = clip.heat_map(pictures, captions[:2])
    assert maps.shape == (3, 2, 2, 2) and maps.dtype == np.float32 and (np.abs(maps) <= 1 + 1e-6).all()
    # Pixels of one patch reach that patch's own value most.
    changed = np.array(clip.preprocess(pictures[0]))
    changed[:8, 8:] = 255 - changed[:8, 8:]
    moved = np.abs(clip.heat_map([changed], captions[:1]) - clip.heat_map(pictures[:1], captions[:1]))[0, 0]
    assert moved.argmax() == 1
    assert clip.heat_map([], captions[:2]).shape == (0, 2, 2, 2)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_in_bfloat16_embeddings_are_those_of_float32_and_weights_are_half(clip, random_variables, tmp_path, tower):
    exact = clip
    if tower == "resnet":
        options = clip.module.options.to_dict()
        options["image"] = {"tower": "resnet", "size": 32, "width": 16, "layers": (1, 1, 1, 1), "heads": 2}
        module = model_lib.build(options, clip.tokenizer.vocab_size, clip.tokenizer.eos_id)
        ids = jnp.zeros((1, options["text"]["context_length"]), jnp.int32)
        variables = random_variables(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), ids)
        exact = Clip.assemble(module, variables, clip.tokenizer, Preprocess(32), "drawn")
    short = Clip.assemble(exact.module, exact.variables, exact.tokenizer, exact.preprocess, "rounded", "bfloat16")
    assert (exact.dtype, short.dtype) == ("float32", "bfloat16") and short.fingerprint == exact.fingerprint
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    for method, values in (("encode_image", images), ("encode_text", ["a red circle", "a blue square"])):
        expected, actual = getattr(exact, method)(values), getattr(short, method)(values)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, rtol=1e-5)
        # bfloat16 has 8 bits: an error of 2^-9 in each of about ten roundings of a unit vector, and some reserve.
        assert np.linalg.norm(actual - expected, axis=1).max() < 10 * 2**-8
        assert (actual != expected).any()
    rounded = {"kernel", "tokens"}
    sizes = {True: 0, False: 0}
    for path, x in jax.tree_util.tree_leaves_with_path(short.variables):
        assert x.dtype == ("bfloat16" if path[-1].key in rounded else "float32")
        sizes[path[-1].key in rounded] += x.size
    assert count_bytes(short.variables) == 2 * sizes[True] + 4 * sizes[False]
    assert count_bytes(exact.variables) == 4 * sum(sizes.values())
    if tower == "resnet":
        return
    with pytest.raises(ValueError, match='rounded to bfloat16 .* load the model with dtype="float32"'):
        clip_jax.save_hf(Clip.assemble(short.module, short.variables, short.tokenizer, short.preprocess, "x"), tmp_path)


def test_a_model_is_loaded_in_the_precision_asked_for(clip, tmp_path):
    clip_jax.save_hf(clip, tmp_path / "model")
    models = {dtype: clip_jax.load(tmp_path / "model", dtype=dtype) for dtype in ("auto", "float32", "bfloat16", None)}
    assert [model.dtype for model in models.values()] == ["float32", "float32", "bfloat16", "float32"], "on a CPU"
    assert len({model.fingerprint for model in models.values()}) == 1
    with pytest.raises(ValueError, match="dtype = 'half' must be one of"):
        clip_jax.load(tmp_path / "model", dtype="half")
