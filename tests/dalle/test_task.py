"""DALL·E as a task: its losses counted by hand, captions that are hidden, codes with and without the cache."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import dalle_jax
import train_jax
import vqgan_jax
from dalle_jax import evaluators
from dalle_jax import task as dalle_task
from dalle_jax.captions import Captions
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.data import sources
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError
from train_jax.step import init_state, make_train_step


def made(tiny, tmp_path, **changes):
    """`(task, config)` of the tiny config with changes."""
    config = config_lib.resolve(ConfigDict(tiny[0].to_dict() | changes))
    return dalle_task.make(config, tmp_path), config


def batch_of(task, config, count=4):
    """Examples of the training set, stacked."""
    source = sources.open_source("digits", "train", data_dir=config.data.data_dir)
    records = task.records(source) if task.records else source
    rng = np.random.default_rng(0)
    examples = [task.example(records[i], rng) for i in range(count)]
    return {key: jnp.asarray(np.stack([e[key] for e in examples])) for key in examples[0]}


def params_of(task, batch):
    return nn.unbox(task.init(jax.random.key(0), batch)[0])


def test_a_run_reports_bits_of_both_kinds_and_shows_samples(tiny):
    history = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    first, last = history[0], history[-1]
    assert {"loss", "bits_per_code", "bits_per_text_token", "truncated"} <= first.keys()
    assert first["bits_per_code"] == pytest.approx(np.log2(12), abs=0.2), "12 codes, before anything is learnt"
    assert last["test/images"] == 359 and last["test/bits_per_code"] < first["bits_per_code"]
    assert last["test/bits_per_text_token"] < first["bits_per_text_token"]
    assert list((tiny[1] / "samples").glob("*look-samples*"))
    assert sorted(p.name for p in tiny[1].glob("*") if p.is_file() and "json" not in p.name) == ["vqgan.safetensors"]


@pytest.mark.parametrize("vocabulary", ["separate", "joint"])
def test_the_loss_is_the_weighted_mean_over_tokens(tiny, tmp_path, vocabulary):
    model = tiny[0].model.to_dict() | {"dropout": 0.0, "vocabulary": vocabulary}
    task, config = made(tiny, tmp_path, model=model, caption_dropout=0.0, loss={"text": 0.3, "image": 0.7})
    batch = batch_of(task, config)
    params = params_of(task, batch)
    value, (metrics, _) = task.loss(params, {}, batch, jax.random.key(1), 0)

    module = dalle_task.model.build(config.model, *sizes(tiny, task, config))
    text_logits, code_logits = module.apply({"params": params["dalle"]}, batch["text"], batch["codes"].reshape(4, -1))
    shift = text_logits.shape[-1] - 12 if vocabulary == "joint" else 0
    vocab = sizes(tiny, task, config)[0] - config.model.text_length
    text_nats, image_nats = [], []
    for row in range(4):
        p = np.log(np.exp(text_logits[row]) / np.exp(text_logits[row]).sum(-1, keepdims=True))
        tokens = np.asarray(batch["text"][row])
        text_nats += [-p[i - 1, tokens[i]] for i in range(1, len(tokens)) if tokens[i] < vocab]
        q = np.log(np.exp(code_logits[row]) / np.exp(code_logits[row]).sum(-1, keepdims=True))
        image_nats += [-q[i, shift + code] for i, code in enumerate(np.asarray(batch["codes"][row]).ravel())]
    assert metrics["bits_per_text_token"] == pytest.approx(np.mean(text_nats) / np.log(2), rel=1e-5)
    assert metrics["bits_per_code"] == pytest.approx(np.mean(image_nats) / np.log(2), rel=1e-5)
    assert value == pytest.approx(0.3 * np.mean(text_nats) + 0.7 * np.mean(image_nats), rel=1e-5)


def test_four_captions_are_learnt_by_heart_in_bfloat16_as_in_float32(tiny, tmp_path, learn):
    """The codes of four captions, drawn at random, end up drawn for them; bfloat16 learns at the same pace."""
    prompts = ["zero", "one", "the digit two", "three"]
    codes = np.random.default_rng(0).integers(0, 12, (4, 4, 4)).astype(np.int32)
    small = {"text_length": 12, "width": 32, "depth": 2, "heads": 2, "dropout": 0.0}
    curves = {}
    for dtype, updates in (("float32", 120), ("bfloat16", 8)):
        model = small | {"dtype": dtype}
        task, config = made(tiny, tmp_path, model=model, steps=120, caption_dropout=0.0, optim={"lr": 1e-2})
        captions = Captions(Tokenizer.from_json(task.artifacts["tokenizer.json"], 12))
        batch = {"text": captions.encode(prompts), "codes": codes, "truncated": np.zeros(4, bool)}
        state, history = learn(task, config, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["bits_per_code"] < 0.05 and history[-1]["bits_per_text_token"] < 1
            vq = vqgan_jax.load(tiny[0].vqgan.path)
            dalle = dalle_jax.Dalle.assemble(config.model, state.params["dalle"], captions, vq, 16, "by heart")
            np.testing.assert_array_equal(dalle.draw(prompts, temperature=0, progress=False).codes[:, 0], codes)
    # Products are rounded to 8 bits: a loss is off by less than a hundredth, and Adam's steps keep it so.
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"][:8], rtol=0.02)
    assert curves["bfloat16"][-1] < 0.8 * curves["bfloat16"][0]


def sizes(tiny, task, config):
    """Rows of the text table, codes, grid."""
    tokens = json.loads(task.artifacts["tokenizer.json"])
    return len(tokens["model"]["vocab"]) + config.model.text_length, 12, (4, 4)


def test_hidden_captions_count_for_pictures_alone(tiny, tmp_path):
    model = tiny[0].model.to_dict() | {"dropout": 0.0}
    task, config = made(tiny, tmp_path, model=model, caption_dropout=0.5)
    batch, rng = batch_of(task, config, 16), np.random.default_rng(0)
    # Weights so large that every token has a likelihood of its own.
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params_of(task, batch))
    key = jax.random.key(3)
    metrics = jax.jit(lambda p: task.loss(p, {}, batch, key, 0)[1][0])(params)

    hidden = np.asarray(jax.random.bernoulli(jax.random.split(key)[0], 0.5, (16,)))
    assert 4 < hidden.sum() < 12
    captions = Captions(Tokenizer.from_json(task.artifacts["tokenizer.json"], config.model.text_length))
    text = np.where(hidden[:, None], captions.encode([""]), batch["text"])
    module = dalle_task.model.build(config.model, *sizes(tiny, task, config))
    logits = module.apply({"params": params["dalle"]}, jnp.asarray(text), batch["codes"].reshape(16, -1))
    text_nats, image_nats = map(np.asarray, evaluators.nats(module, logits, jnp.asarray(text), batch["codes"]))
    told = captions.counted(text[:, 1:]) & ~hidden[:, None]
    assert metrics["bits_per_text_token"] == pytest.approx(text_nats[told].mean() / np.log(2), rel=1e-5)
    assert metrics["bits_per_code"] == pytest.approx(image_nats.mean() / np.log(2), rel=1e-5)


def test_merges_are_left_out_of_captions_while_training(tiny, tmp_path):
    plain, config = made(tiny, tmp_path)
    rough, _ = made(tiny, tmp_path, tokenizer=tiny[0].tokenizer.to_dict() | {"dropout": 0.5})
    captions = Captions(Tokenizer.from_json(plain.artifacts["tokenizer.json"], config.model.text_length))
    record = {"captions": ["the digit"], "codes": np.zeros((1, 4, 4), np.int32)}

    def rows(task):
        return {tuple(task.example(record, np.random.default_rng(seed))["text"].tolist()) for seed in range(20)}

    assert rows(plain) == {tuple(captions.encode(["the digit"])[0].tolist())}
    assert len(rows(rough)) > 5


def test_codes_on_the_fly_are_those_of_the_cache(tiny, tmp_path):
    model = tiny[0].model.to_dict() | {"dropout": 0.0}
    cached, config = made(tiny, tmp_path, model=model, caption_dropout=0.0)
    fresh, other = made(tiny, tmp_path, model=model, caption_dropout=0.0, codes={"cached": False})
    assert fresh.records is None
    batch, pictures = batch_of(cached, config), batch_of(fresh, other)
    assert pictures["image"].dtype == jnp.uint8
    params = params_of(cached, batch)
    extra = fresh.pretrained()[1]
    a = cached.loss(params, {}, batch, jax.random.key(0), 0)[0]
    b = fresh.loss(params, extra, pictures | {"text": batch["text"]}, jax.random.key(0), 0)[0]
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_a_run_without_the_cache_trains_and_loads(tiny, tmp_path):
    config = ConfigDict(tiny[0].to_dict() | {"steps": 2, "evals": {}, "codes": {"cached": False}})
    config.augment = {"scale": (0.5, 1.0)}
    train_jax.run(config, tmp_path / "run")
    vq = vqgan_jax.load(tiny[0].vqgan.path)
    assert dalle_jax.load(tmp_path / "run").vqgan.fingerprint == vq.fingerprint


def run_steps(task, batch, devices: int, fsdp: int = 1, tensor: int = 1):
    """Losses of three updates, and the parameters after them."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": tensor}, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        create, abstract, tx = init_state(task, lambda params, axes: optax.sgd(0.05), mesh, batch, seed=0)
        step = make_train_step(task, tx, mesh, abstract, seed=0, schedules={"dalle": lambda _: 0.05})
        state, seen = create(), []
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        for _ in range(3):
            state, metrics = step(state, placed)
            seen.append(float(metrics["loss"]))
    return seen, jax.device_get(state.params)


@pytest.mark.parametrize("fsdp, tensor", [(1, 1), (2, 2)])
def test_eight_devices_compute_what_one_does(tiny, tmp_path, fsdp, tensor):
    task, config = made(tiny, tmp_path, model=tiny[0].model.to_dict() | {"dropout": 0.0})
    batch = batch_of(task, config, 16)
    (one, params), (eight, found) = run_steps(task, batch, 1), run_steps(task, batch, 8, fsdp, tensor)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vqgan": {"path": ""}}, "config.vqgan.path is empty"),
        ({"vqgan": {"size": 18}}, r"config.vqgan.size = 18 must be divisible by 4"),
        ({"caption_dropout": 1.0}, "caption_dropout = 1.0; it must be in"),
        ({"tokenizer": {"dropout": 1.5}}, "tokenizer.dropout = 1.5"),
        ({"loss": {"text": -1.0}}, "loss.text = -1.0"),
        ({"loss": {"text": 0.0, "image": 0.0}}, "loss.image = 0.0; it must be positive"),
        ({"augment": {"flip": True}}, "augment = .*the default with codes.cached = True"),
        ({"codes": {"cached": False, "flip": True}}, "codes.flip = True; it must be False without the cache"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny, tmp_path, changes, message):
    plain = tiny[0].to_dict()
    merged = {key: plain.get(key, {}) | value if isinstance(value, dict) else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        made(tiny, tmp_path, **merged)


def test_a_model_that_learns_nothing_is_named(tiny, tmp_path):
    task, _ = made(tiny, tmp_path)
    guessing = np.log2(12)
    assert task.warnings({"bits_per_code": guessing - 0.1}, 500) == []
    assert task.warnings({"bits_per_code": guessing + 1}, 50) == [], "at the start everything is guessed"
    (words,) = task.warnings({"bits_per_code": guessing + 1}, 500)
    assert "4.58 bits a code, where all codes alike are 3.58" in words and "optim.lr" in words
