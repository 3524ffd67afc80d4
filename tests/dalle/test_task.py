"""DALL-E as a task: a short run, its tokenizer, its options.

Losses, devices, and codes with and without the cache: tests/vqgan/stage2/test_task.py.
"""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

import dalle_jax
import train_jax
import vqgan_jax
from dalle_jax import task as dalle_task
from dalle_jax.captions import Captions
from train_jax import config as config_lib
from train_jax.data.text import Tokenizer
from train_jax.errors import ConfigError


def make(tiny, workdir, **changes):
    """The task of the tiny config with changes."""
    return dalle_task.make(config_lib.resolve(ConfigDict(tiny[0].to_dict() | changes)), workdir)


def test_a_run_reports_bits_of_both_kinds_and_shows_samples(tiny):
    history = [json.loads(line) for line in (tiny[1] / "metrics.jsonl").read_text().splitlines()]
    first, last = history[0], history[-1]
    assert {"loss", "bits_per_code", "bits_per_text_token", "truncated"} <= first.keys()
    assert first["bits_per_code"] == pytest.approx(np.log2(12), abs=0.2), "12 codes, at the start of training"
    assert last["test/images"] == 359 and last["test/bits_per_code"] < first["bits_per_code"]
    assert last["test/bits_per_text_token"] < first["bits_per_text_token"]
    assert list((tiny[1] / "samples").glob("*look-samples*"))
    assert sorted(p.name for p in tiny[1].glob("*") if p.is_file() and "json" not in p.name) == ["vqgan.safetensors"]


def test_merges_are_dropped_in_training(tiny, tmp_path):
    plain = make(tiny, tmp_path)
    rough = make(tiny, tmp_path, tokenizer=tiny[0].tokenizer.to_dict() | {"dropout": 0.5})
    captions = Captions(Tokenizer.from_json(plain.artifacts["tokenizer.json"], tiny[0].model.text_length))
    record = {"captions": ["the digit"], "codes": np.zeros((1, 4, 4), np.int32)}

    def rows(task):
        return {tuple(task.example(record, np.random.default_rng(seed))["condition"].tolist()) for seed in range(20)}

    assert rows(plain) == {tuple(captions.encode(["the digit"])[0].tolist())}
    assert len(rows(rough)) > 5


@pytest.mark.slow
def test_a_run_without_the_cache_trains_and_loads(tiny, tmp_path):
    config = ConfigDict(tiny[0].to_dict() | {"steps": 2, "evals": {}, "codes": {"cached": False}})
    config.augment = {"scale": (0.5, 1.0)}
    train_jax.run(config, tmp_path / "run")
    vq = vqgan_jax.load(tiny[0].vqgan.path)
    assert dalle_jax.load(tmp_path / "run").vqgan.fingerprint == vq.fingerprint


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vqgan": {"path": ""}}, "config.vqgan.path is empty"),
        ({"condition_dropout": 1.0}, "condition_dropout = 1.0; it must be in"),
        ({"tokenizer": {"dropout": 1.5}}, "tokenizer.dropout = 1.5"),
        ({"model": {"text_length": 1}}, "text_length = 1; it must be at least 2"),
        ({"loss": {"condition": -1.0}}, "loss.condition = -1.0"),
        ({"loss": {"condition": 0.0, "codes": 0.0}}, "loss.codes = 0.0; it must be positive"),
    ],
)
def test_wrong_options_are_refused(tiny, tmp_path, changes, message):
    plain = tiny[0].to_dict()
    merged = {key: plain.get(key, {}) | value if isinstance(value, dict) else value for key, value in changes.items()}
    with pytest.raises(ConfigError, match=message):
        make(tiny, tmp_path, **merged)
