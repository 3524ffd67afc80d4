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
from dalle_jax import task as dalle_task
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.data import sources
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


def sizes(tiny, task, config):
    """Rows of the text table, codes, grid."""
    tokens = json.loads(task.artifacts["tokenizer.json"])
    return len(tokens["model"]["vocab"]) + config.model.text_length, 12, (4, 4)


def test_hidden_captions_count_for_pictures_alone(tiny, tmp_path):
    model = tiny[0].model.to_dict() | {"dropout": 0.0}
    task, config = made(tiny, tmp_path, model=model, caption_dropout=0.9)
    batch = batch_of(task, config, 64)
    params = params_of(task, batch)
    loss = jax.jit(lambda p, rng: task.loss(p, {}, batch, rng, 0)[1][0])
    metrics = loss(params, jax.random.key(3))
    plain, _ = made(tiny, tmp_path, model=model, caption_dropout=0.0)
    whole = jax.jit(lambda p, rng: plain.loss(p, {}, batch, rng, 0)[1][0])(params, jax.random.key(3))
    # Of a few captions that are told, not of "" many times over; and pictures without captions are others.
    assert float(metrics["bits_per_text_token"]) == pytest.approx(float(whole["bits_per_text_token"]), rel=0.05)
    assert metrics["bits_per_code"] != whole["bits_per_code"]


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
