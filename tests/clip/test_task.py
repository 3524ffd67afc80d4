"""CLIP as a task of the trainer: what an example holds, the loss on one device and on eight, options and their errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageOps

import clip_jax
import train_jax
from clip_jax import task as clip_task
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.data.images import BrokenSample, Preprocess, normalize
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError

SIZE, LENGTH = 16, 10
SMALL = {
    "task": "clip_jax.task",
    "steps": 2,
    "model": {
        "embed_dim": 8,
        "image": {"size": SIZE, "patch": 8, "width": 16, "depth": 1, "heads": 2},
        "text": {"context_length": LENGTH, "width": 16, "depth": 1, "heads": 2},
    },
    "tokenizer": {"vocab_size": 600},
}
CAPTIONS = ["one red kite", "two blue kites above the sea", "a long story " * 5]


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two halves, left dark and right light, with three captions each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(5):
        pixels = np.zeros((20, 40, 3), np.uint8) + np.uint8(20 * number)
        pixels[:, 20:] = 230
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(json.dumps({"file": f"{number}.png", "captions": CAPTIONS}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


def resolve(folder, **changes):
    config = ConfigDict(SMALL | {"data": {"source": f"folder:{folder}", "batch_size": 8}})
    for path, value in changes.items():
        group = config
        *parents, key = path.split("__")
        for parent in parents:
            if parent not in group:
                group[parent] = ConfigDict()
            group = group[parent]
        group[key] = value
    return config_lib.resolve(config)


def record(folder, number=0, captions=CAPTIONS):
    return {"image": (folder / f"{number}.png").read_bytes(), "captions": captions, "id": str(number)}


def test_an_example_is_a_picture_and_one_of_its_captions(folder):
    task = clip_task.make(resolve(folder), None)
    tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
    seen = set()
    for seed in range(30):
        example = task.example(record(folder), np.random.default_rng(seed))
        assert {name: (x.shape, x.dtype) for name, x in example.items()} == {
            "image": ((SIZE, SIZE, 3), np.uint8),
            "text": ((LENGTH,), np.int32),
            "truncated": ((), bool),
        }
        text = tokenizer.decode(example["text"])
        seen.add(text)
        assert example["truncated"] == text.startswith("a long story")
    assert len(seen) == 3
    with Image.open(folder / "0.png") as image:
        middle = image.convert("RGB").resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16))
    np.testing.assert_array_equal(example["image"], np.asarray(middle))


def test_the_same_generator_gives_the_same_example(folder):
    task = clip_task.make(resolve(folder, augment__scale=(0.3, 1.0), augment__flip=True), None)
    first, second = (task.example(record(folder), np.random.default_rng(3)) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_flips_mirror_half_of_the_pictures(folder):
    plain = clip_task.make(resolve(folder), None)
    flipping = clip_task.make(resolve(folder, augment__flip=True), None)
    straight = plain.example(record(folder), np.random.default_rng(0))["image"]
    mirrored = np.asarray(ImageOps.mirror(Image.fromarray(straight)))
    found = [flipping.example(record(folder), np.random.default_rng(seed))["image"] for seed in range(40)]
    turned = sum(np.array_equal(image, mirrored) for image in found)
    assert turned + sum(np.array_equal(image, straight) for image in found) == 40
    assert 10 < turned < 30


def test_random_crops_differ_and_keep_the_shape(folder):
    task = clip_task.make(resolve(folder, augment__scale=(0.2, 0.9)), None)
    found = [task.example(record(folder), np.random.default_rng(seed))["image"] for seed in range(8)]
    assert len({image.tobytes() for image in found}) > 1
    assert {image.shape for image in found} == {(SIZE, SIZE, 3)}


def test_pairs_are_learnt_by_heart_in_bfloat16_as_in_float32(folder, learn):
    """Sixteen pictures find their captions, and captions their pictures."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (16, 2, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    curves = {}
    for dtype, updates in (("float32", 150), ("bfloat16", 12)):
        config = resolve(folder, steps=150, compute__dtype=dtype, optim__lr=3e-3)
        task = clip_task.make(config, None)
        tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
        text = tokenizer.encode([f"{a} {b}" for a in "abcd" for b in "wxyz"])
        batch = {"image": pictures, "text": text, "truncated": np.zeros(16, bool)}
        _, history = learn(task, config, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["accuracy/image_to_text"] == history[-1]["accuracy/text_to_image"] == 1
            assert curves[dtype][-1] < 0.1
    # Cosines of 8 numbers are off by some 2^-8, and the scale that multiplies them is 14 at the start.
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"][:12], atol=0.1)
    assert curves["bfloat16"][-1] < 0.8 * curves["bfloat16"][0]


def test_a_broken_picture_is_said_to_be_broken(folder):
    task = clip_task.make(resolve(folder), None)
    with pytest.raises(BrokenSample):
        task.example(record(folder) | {"image": b"no picture"}, np.random.default_rng(0))


def batch(task, folder, count=8):
    """Rows with many equal captions."""
    rows = [task.example(record(folder, n % 5), np.random.default_rng(n)) for n in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


GROUPS = {"tile": "contrastive", "duplicates": "contrastive", "micro_batch": "compute", "remat": "compute"}
GROUPS |= {"scan": "compute"}
CONV = {"stem": "conv", "width": 32, "pool": "mean"}
RESNET = {"tower": "resnet", "size": 64, "width": 4, "layers": (1, 1, 1, 1), "heads": 4}


@pytest.mark.parametrize(
    "sizes, options, image",
    [
        ((2, 2, 2), {"loss": "sigmoid"}, CONV),
        # Of the 4 rows of a device at most 3: twice 2.
        ((4, 1, 2), {"loss": "softmax", "micro_batch": 3, "remat": "dots", "scan": False}, CONV),
        (
            (2, 2, 2),
            {"loss": "sigmoid", "micro_batch": 1, "tile": 4, "duplicates": "negative", "remat": "full"},
            {"pool": "map"},
        ),
        ((2, 2, 2), {"loss": "softmax", "tile": 4}, RESNET),
    ],
)
def test_dense_ring_and_in_parts_on_one_device_and_on_eight_are_one_loss(
    folder, random_variables, sizes, options, image
):
    """Loss, metrics and every gradient, of the plain task on one device and of the other on eight."""
    options = {f"{GROUPS.get(key, 'model')}__{key}": value for key, value in options.items()}
    options |= {f"model__image__{key}": value for key, value in image.items()}
    how = ("contrastive__tile", "compute__micro_batch", "compute__remat")
    plain = clip_task.make(resolve(folder, **{k: v for k, v in options.items() if k not in how}), None)
    task = clip_task.make(resolve(folder, data__batch_size=16, **options), None)
    data = jax.tree.map(jnp.asarray, batch(task, folder, 16))
    # Equal pictures would be equally near to a text, and which of them comes first differs.
    data["image"] = jax.random.randint(jax.random.key(2), data["image"].shape, 0, 256).astype(jnp.uint8)
    if options.get("contrastive__duplicates") == "negative":  # and so would equal texts
        data["text"] = data["text"].at[:, 1].set(jnp.arange(16))
    boxed, _ = jax.eval_shape(task.init, jax.random.key(0), data)
    if image is RESNET:  # its blocks begin as shortcuts, through which gradients keep their digits
        params, extra = sharding.unbox(jax.jit(task.init)(jax.random.key(0), data))
    else:
        params, extra = random_variables(task.init, jax.random.key(0), data)

    def run(task):
        def gradients(params, data):
            loss = jax.value_and_grad(task.loss, has_aux=True)
            return loss(params, extra, data, jax.random.key(1), jnp.asarray(0))

        return gradients

    (value, (metrics, changed)), grads = jax.jit(run(plain))(params, data)
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    split = sharding.shardings(boxed, mesh)
    with jax.set_mesh(mesh):
        spread = jax.jit(
            sharding.with_rules(run(task)),
            in_shardings=(split, sharding.batch_sharding(mesh)),
            out_shardings=(None, split),
        )
        (found, (found_metrics, found_changed)), found_grads = spread(params, data)
    if sizes == (2, 2, 2):
        kernel = found_grads["clip"]["text"]["transformer"]["blocks"]["mlp_in"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (1, 8, 32), "split over fsdp and tensor"
    np.testing.assert_allclose(found, value, rtol=1e-5)
    assert jax.tree.map(float, found_metrics) == pytest.approx(jax.tree.map(float, metrics), rel=1e-5)
    # A ResNet's statistics are those of the whole batch, wherever its rows are.
    for mine, theirs in zip(jax.tree.leaves(found_changed), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert bool(jax.tree.leaves(changed)) == (image is RESNET)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        other = found_grads
        for key in path:
            other = other[key.key]
        # Sums of terms as large as the largest gradient: what cancels in one entry keeps their rounding.
        largest = max(1.0, float(jnp.abs(grad).max()))
        np.testing.assert_allclose(other, grad, rtol=1e-5, atol=1e-5 * largest, err_msg=str(path))


def test_the_loss_is_that_of_its_parts(folder):
    """Against the softmax loss in NumPy, from embeddings that the module gives for pixels normalised here."""
    config = resolve(folder)
    task = clip_task.make(config, None)
    data = jax.tree.map(jnp.asarray, batch(task, folder))
    params = sharding.unbox(jax.jit(task.init)(jax.random.key(0), data)[0])
    value, (metrics, extra) = jax.jit(task.loss)(params, {}, data, jax.random.key(1), 0)
    tokenizer = Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH)
    preprocess = Preprocess.from_json(task.artifacts["preprocess.json"])
    module = clip_task.model.build(config.model, tokenizer.vocab_size, tokenizer.eos_id)
    pixels = (np.asarray(data["image"]) / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    np.testing.assert_allclose(normalize(data["image"], preprocess.mean, preprocess.std), pixels, atol=1e-5)
    image, text, _, _ = jax.jit(module.apply)(
        {"params": params["clip"]}, jnp.asarray(pixels, jnp.float32), data["text"]
    )
    logits = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T / 0.07
    equal = np.array([[np.array_equal(a, b) for b in data["text"]] for a in data["text"]])
    assert equal.sum() > 8, "some captions are equal"
    expected = 0
    for axis in (0, 1):
        log_p = logits - np.log(np.exp(logits).sum(axis, keepdims=True))
        expected -= np.mean((equal * log_p).sum(axis) / equal.sum(axis)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["truncated"], data["truncated"].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["logit_scale"], 1 / 0.07, rtol=1e-5)
    assert extra == {}


def test_equal_captions_as_positives_or_negatives(folder):
    """It matters to the sigmoid loss alone: in the softmax loss the sums over a group of equal captions are the same."""
    values = {}
    for loss in ("softmax", "sigmoid"):
        tasks = {
            duplicates: clip_task.make(resolve(folder, model__loss=loss, contrastive__duplicates=duplicates), None)
            for duplicates in ("positive", "negative")
        }
        data = jax.tree.map(jnp.asarray, batch(tasks["positive"], folder))
        params = sharding.unbox(jax.jit(tasks["positive"].init)(jax.random.key(0), data)[0])
        for duplicates, task in tasks.items():
            values[loss, duplicates] = float(jax.jit(task.loss)(params, {}, data, jax.random.key(1), 0)[0])
    assert values["softmax", "positive"] == pytest.approx(values["softmax", "negative"], rel=1e-5)
    assert values["sigmoid", "positive"] > values["sigmoid", "negative"] + 1, "the bias of -10 says no to every pair"


def test_dropout_draws_by_the_key_it_is_given(folder, random_variables):
    task = clip_task.make(resolve(folder, dropout=0.3), None)
    data = jax.tree.map(jnp.asarray, batch(task, folder))
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(lambda seed: task.loss(params, {}, data, jax.random.key(seed), 0)[0])
    assert loss(1) == loss(1) != loss(2)


def test_parts_draw_their_own_dropout_the_same_in_both_passes(folder, random_variables):
    """A part's gradient is that of its features with the key it had forward: by differences along a direction."""
    task = clip_task.make(resolve(folder, dropout=0.3, compute__micro_batch=4), None)
    data = jax.tree.map(jnp.asarray, batch(task, folder))
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(jax.value_and_grad(lambda params: task.loss(params, {}, data, jax.random.key(1), 0)[0]))
    _, grads = loss(params)
    kernel = grads["clip"]["vision"]["proj"]["kernel"]
    step = 1e-2 * kernel / jnp.linalg.norm(kernel)

    def moved(sign):
        clip = params["clip"] | {"vision": params["clip"]["vision"] | {"proj": {"kernel": old + sign * step}}}
        return float(loss({"clip": clip})[0])

    old = params["clip"]["vision"]["proj"]["kernel"]
    slope = (moved(1) - moved(-1)) / 2e-2
    assert slope == pytest.approx(float(jnp.linalg.norm(kernel)), rel=2e-3)


def test_patch_dropout_leaves_patches_out_while_training(folder, random_variables):
    task = clip_task.make(resolve(folder, patch_dropout=0.5), None)
    whole = clip_task.make(resolve(folder), None)
    data = jax.tree.map(jnp.asarray, batch(task, folder))
    params, _ = random_variables(task.init, jax.random.key(0), data)
    loss = jax.jit(lambda seed: task.loss(params, {}, data, jax.random.key(seed), 0)[0])
    assert loss(1) == loss(1) != loss(2)
    assert task.flops < whole.flops
    text = jax.make_jaxpr(lambda p: task.loss(p, {}, data, jax.random.key(0), 0)[0])(params).pretty_print()
    assert "8,3,3,2,8]" in text and "8,5,3,2,8]" not in text, "attention over the class token and two of four patches"


def test_a_locked_tower_keeps_its_weights_and_its_statistics(folder, random_variables):
    changes = {f"model__image__{key}": value for key, value in RESNET.items()}
    task = clip_task.make(resolve(folder, optim__freeze=("^clip/vision/",), **changes), None)
    data = jax.tree.map(jnp.asarray, batch(task, folder))
    params, extra = random_variables(task.init, jax.random.key(0), data)
    run = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (_, (_, changed)), grads = run(params, extra, data, jax.random.key(1), 0)
    assert all((g == 0).all() for g in jax.tree.leaves(grads["clip"]["vision"]))
    assert any((g != 0).any() for g in jax.tree.leaves(grads["clip"]["text"]))
    for mine, theirs in zip(jax.tree.leaves(changed), jax.tree.leaves(extra), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Starting from a checkpoint


GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "clip"


def fine_tuning(folder, kind, **changes):
    config = ConfigDict({"task": "clip_jax.task", "steps": 2, "pretrained": str(GOLDEN / kind), "log_every": 1})
    config.data = ConfigDict({"source": f"folder:{folder}", "batch_size": 8})
    config.optim = ConfigDict({"lr": 1e-3, "schedule": "constant"})
    for path, value in changes.items():
        *groups, key = path.split(".")
        part = config
        for group in groups:
            if group not in part:
                part[group] = ConfigDict()
            part = part[group]
        part[key] = value
    return config


@pytest.mark.parametrize(
    "kind, optimizer",
    [
        ("hf-siglip", "contrib.schedule_free_adamw"),
        pytest.param("hf-clip", "adamw", marks=pytest.mark.slow),
        pytest.param("open-clip-resnet", "adamw", marks=pytest.mark.slow),
    ],
)
def test_training_starts_at_a_public_checkpoint(folder, tmp_path, kind, optimizer):
    """At rate 0 nothing changes: what is loaded from the run is what was loaded from the peer."""
    peer = clip_jax.load(GOLDEN / kind)
    still = fine_tuning(folder, kind, **{"optim.name": optimizer, "optim.lr": 1e-30, "optim.freeze": ("vision",)})
    history = train_jax.run(still, tmp_path / "still")
    run = clip_jax.load(tmp_path / "still")
    pictures = sorted(folder.glob("*.png"))
    np.testing.assert_allclose(run.encode_image(pictures), peer.encode_image(pictures), atol=1e-6)
    np.testing.assert_allclose(run.encode_text(CAPTIONS), peer.encode_text(CAPTIONS), atol=1e-6)
    np.testing.assert_allclose(run.similarity(pictures, CAPTIONS), peer.similarity(pictures, CAPTIONS), atol=1e-4)
    assert run.preprocess == peer.preprocess and run.tokenizer.fingerprint == peer.tokenizer.fingerprint
    assert np.isfinite(history[-1]["loss"])


def test_the_text_tower_of_a_checkpoint_learns_beside_a_locked_one_at_another_size(folder, tmp_path):
    changes = {"model.image.size": 40, "optim.freeze": ("vision",)}
    train_jax.run(fine_tuning(folder, "hf-clip", **changes), tmp_path / "run")
    clip, peer = clip_jax.load(tmp_path / "run"), clip_jax.load(GOLDEN / "hf-clip", image_size=40)
    assert clip.preprocess.size == 40 and clip.variables["params"]["vision"]["positions"].shape == (26, 32)
    pictures = sorted(folder.glob("*.png"))
    np.testing.assert_allclose(clip.encode_image(pictures), peer.encode_image(pictures), atol=1e-6)
    assert np.abs(clip.encode_text(CAPTIONS) - peer.encode_text(CAPTIONS)).max() > 1e-3


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.image.width": 64}, r"config.model.image.width = 64, but the checkpoint .* has 32: leave it out"),
        ({"model.activation": "gelu"}, "config.model.activation = 'gelu', but"),
        ({"preprocess.mode": "squash"}, "config.preprocess.mode = 'squash', but"),
        ({"tokenizer.vocab_size": 700}, "the tokenizer comes with the checkpoint"),
        ({"pretrained": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_options_that_contradict_the_checkpoint_are_named(folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train_jax.run(fine_tuning(folder, "hf-clip", **changes), tmp_path / "run")


@pytest.mark.parametrize("kind", ["hf-clip", "hf-siglip", "open-clip-resnet"])
def test_a_run_starts_again_from_its_own_complete_config(folder, kind):
    """What a run directory's config.json holds, lists for tuples, is no contradiction of the checkpoint."""
    full = config_lib.resolve(fine_tuning(folder, kind))
    assert config_lib.resolve(full) == full == config_lib.resolve(ConfigDict(json.loads(full.to_json())))


def test_a_run_directory_s_tokenizer_is_used_again(folder, tmp_path):
    first = clip_task.make(resolve(folder), None).artifacts["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text(first)
    for caption in folder.glob("captions.jsonl"):
        caption.write_text("\n".join(json.dumps({"file": f"{n}.png", "caption": "zebra zebra"}) for n in range(5)))
    again = clip_task.make(resolve(folder), tmp_path).artifacts["tokenizer.json"]
    assert Tokenizer.from_json(again).fingerprint == Tokenizer.from_json(first).fingerprint
    assert clip_task.make(resolve(folder), None).artifacts["tokenizer.json"] != first


def test_a_tokenizer_can_be_loaded(folder, tmp_path):
    made = Tokenizer.train(["something else"], 560, LENGTH)
    made.save(tmp_path / "mine.json")
    task = clip_task.make(resolve(folder, tokenizer__path=str(tmp_path / "mine.json")), None)
    assert Tokenizer.from_json(task.artifacts["tokenizer.json"], LENGTH).fingerprint == made.fingerprint


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__activation": "relu"}, "activation = 'relu'"),
        ({"model__image__heads": 5}, "heads = 5"),
        ({"augment__scale": (0.0, 1.0)}, "augment.scale"),
        ({"augment__scale": (0.9, 0.5)}, "augment.scale"),
        ({"model__imgae__size": 5}, "did you mean config.model.image"),
        ({"accumulate": 2}, "accumulate = 2: a contrastive loss .* Set config.compute.micro_batch instead"),
        ({"patch_dropout": 1.0}, "patch_dropout = 1.0"),
        ({"model__image__proj": False}, "embed_dim = 8 must be image.width = 16"),
        ({"model__text__pool": "last"}, "pool = 'last' reads the padding"),
        ({"model__text__vocab_size": 5}, "vocab_size = 5 is less than"),
        ({"model__image__tower": "resnet"}, "size = 16 must be a multiple of 32"),
        ({"model__image__tower": "resnet", "model__image__size": 32, "compute__micro_batch": 4}, "batch norm takes"),
        ({"compute__dtype": "float16"}, "compute.dtype = 'float16'.*bfloat16"),
        ({"compute__remat": "some"}, "compute.remat = 'some'"),
        ({"contrastive__duplicates": "maybe"}, "duplicates = 'maybe'"),
        ({"augment__flip": 1}, "augment.flip = 1 is a int"),
    ],
)
def test_wrong_options_are_named(folder, changes, words):
    with pytest.raises(ConfigError, match=words):
        clip_task.make(resolve(folder, **changes), None)


@pytest.mark.parametrize("stem, pool", [("patch", "cls"), ("conv", "mean"), ("patch", "map")])
def test_flops_are_those_the_compiler_counts(folder, stem, pool):
    """Of an unrolled model, forward; norms, softmax and activations come on top of the formula."""
    changes = {"stem": stem, "pool": pool, "size": 64, "patch": 16, "width": 128, "depth": 2}
    config = resolve(folder, compute__scan=False, **{f"model__image__{key}": value for key, value in changes.items()})
    config.model.text.update({"width": 128, "depth": 2})
    module = clip_task.model.build(config.model, 600, 599, clip_task.CLIPCompute.parse(config.compute, "compute"))
    images, ids = jnp.zeros((1, 64, 64, 3)), jnp.full((1, LENGTH), 599, jnp.int32)
    params = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), images, ids))
    counted = jax.jit(module.apply).lower(params, images, ids).compile().cost_analysis()["flops"]
    assert sum(clip_task.flops.forward(module.options)) == pytest.approx(counted, rel=0.06)


def test_flops_of_a_resnet_are_those_the_compiler_counts(folder):
    changes = {f"model__image__{key}": value for key, value in (RESNET | {"size": 64, "width": 16}).items()}
    config = resolve(folder, **changes)
    module = clip_task.model.build(config.model, 600, 599, clip_task.CLIPCompute.parse(config.compute, "compute"))
    images = jnp.zeros((1, 64, 64, 3))
    variables = sharding.unbox(
        jax.eval_shape(module.init, jax.random.key(0), images, jnp.full((1, LENGTH), 599, jnp.int32))
    )
    run = jax.jit(lambda variables, images: module.apply(variables, images, method="encode_image"))
    counted = run.lower(variables, images).compile().cost_analysis()["flops"]
    assert clip_task.flops.forward(module.options)[0] == pytest.approx(counted, rel=0.08)
