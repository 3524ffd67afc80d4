"""Going on under other options: what is refused, by name; what starts anew, and where it stands."""

import dataclasses
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_task
from drive_toy import config
from ml_collections import ConfigDict

import train_jax
from train_jax import config as config_lib
from train_jax import optim, resume, sharding
from train_jax.checkpoint import Checkpoints
from train_jax.errors import ConfigError, LoadError
from train_jax.step import COUNTERS, TrainState

PARAMS = {
    "a": {"dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones((6,))}, "out": {"kernel": jnp.ones((6, 6))}},
    "b": {"dense": {"kernel": jnp.full((4, 4), 2.0)}},
}
AXES = {sharding.path_name(path): (None,) * x.ndim for path, x in jax.tree_util.tree_leaves_with_path(PARAMS)}


class Position:
    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def options(**changes):
    full = config_lib.OptimOptions.defaults()
    full.update(ConfigDict({"lr": 0.1, "weight_decay": 0.1, "schedule": "linear"} | changes))
    return full


def made(optimiser, params=PARAMS, ema=(), steps=0):
    tx, _ = optim.make(optimiser, params, 100, AXES)
    state = TrainState(
        step=jnp.asarray(steps, jnp.int32),
        params=params,
        extra={},
        opt_state=jax.jit(tx.init)(params),
        ema={player: jax.tree.map(lambda x: x + 1, params[player]) for player in ema} or None,
        counters={name: jnp.zeros((), jnp.int32) for name in COUNTERS},
    )
    return state, tx


def saved(directory, state, optimiser):
    checkpoints = Checkpoints(directory, every=1, keep_last=1, config={"optim": json.loads(optimiser.to_json())})
    checkpoints.save(7, state, Position())
    checkpoints.close()


def restored(directory, state, optimiser, **how):
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    replicated = sharding.replicated(mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    checkpoints = Checkpoints(directory, every=1, keep_last=1, config={"optim": json.loads(optimiser.to_json())})
    try:
        return checkpoints.restore(abstract, Position(), **how)[0], abstract
    finally:
        checkpoints.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "lion"}, "config.optim.name: 'adamw' → 'lion'"),
        ({"name": "sgd", "weight_decay": 0.0}, "config.optim.name: 'adamw' → 'sgd'"),
        ({"freeze": ("a/dense",)}, "config.optim.freeze: [] → ['a/dense']"),
        ({"lr_scale": (("a/", 0.5),)}, "config.optim.lr_scale: [] → [['a/', 0.5]]"),
        ({"no_decay": ("kernel",)}, "config.optim.no_decay: "),
    ],
)
def test_another_optimiser_is_refused_by_the_option_that_differs(changes, words, tmp_path):
    state, _ = made(options())
    saved(tmp_path, state, options())
    other, _ = made(options(**changes))
    with pytest.raises(ConfigError, match=rf"another optimiser \({re.escape(words)}.*\): .*; .*--reset-optimizer"):
        restored(tmp_path, other, options(**changes))
    actual, _ = restored(tmp_path, other, options(**changes), reset_optimizer=True)
    assert actual.opt_state is None
    jax.tree.map(np.testing.assert_array_equal, actual.params, PARAMS)


def test_the_optimisers_state_is_saved_by_path(tmp_path):
    state, _ = made(options(lr_scale=(("a/out", 0.5), ("b/", 0.5))))
    moved = state.replace(opt_state=jax.tree.map(lambda x: x + 3, state.opt_state))
    saved(tmp_path, moved, options())
    actual, _ = restored(tmp_path, state, options())
    assert jax.tree.structure(actual) == jax.tree.structure(moved)
    jax.tree.map(np.testing.assert_array_equal, actual, moved)


def test_another_model_is_refused_by_the_array_that_differs(tmp_path):
    state, _ = made(options())
    saved(tmp_path, state, options())
    wider = PARAMS | {"b": {"dense": {"kernel": jnp.ones((4, 8))}, "more": {"kernel": jnp.ones((2, 2))}}}
    other = dataclasses.replace(state, params=wider)
    words = (
        r"params do not match this run: b/dense/kernel is float32\[4, 4\] in the checkpoint "
        r"and float32\[4, 8\] in this run; b/more/kernel is"
    )
    with pytest.raises(ConfigError, match=words + ".* Go back to the version that saved it, or choose another"):
        restored(tmp_path, other, options())


@pytest.mark.parametrize(
    ("before", "after"), [((), ("a", "b")), (("a",), ("b",)), (("a", "b"), ()), (("a", "b"), ("b",))]
)
def test_new_averages_start_at_the_weights_and_unused_ones_are_dropped(before, after, tmp_path, caplog):
    old, tx = made(options(), ema=before)
    saved(tmp_path, old, options())
    new, _ = made(options(), ema=after)
    with caplog.at_level(logging.WARNING):
        actual, abstract = restored(tmp_path, new, options())
        actual = resume.complete_state(actual, abstract, tx.init)
    assert jax.tree.structure(actual) == jax.tree.structure(new)
    for player in after:
        expected = old.ema[player] if player in before else PARAMS[player]
        jax.tree.map(np.testing.assert_array_equal, actual.ema[player], expected)
    for player in {*before, *after}:
        assert (f"no average of {player}" in caplog.text) == (player not in before)
        assert (f"no longer averages {player}" in caplog.text) == (player not in after)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_a_reset_optimiser_has_fresh_moments_and_its_schedule_goes_on(name, tmp_path):
    changes = {"name": name, "clip": 0.0, "weight_decay": 0.0 if name == "sgd" else 0.1}
    old, _ = made(options(name="lion"), steps=40)
    old.counters["skipped"] = jnp.asarray(10, jnp.int32)
    saved(tmp_path, old, options(name="lion"))
    new, tx = made(options(**changes))
    actual, abstract = restored(tmp_path, new, options(**changes), reset_optimizer=True)
    actual = resume.complete_state(actual, abstract, tx.init)
    updates, _ = jax.jit(tx.update)(PARAMS, actual.opt_state, actual.params)
    # The first update of a run whose rate is what the schedule has come to after 30 updates.
    fresh, rule = made(options(**changes, lr=0.07, schedule="constant"))
    expected, _ = jax.jit(rule.update)(PARAMS, fresh.opt_state, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_another_optimiser_does_not_resume_a_run_unless_it_is_reset(tmp_path):
    train_jax.run(config(steps=4, checkpoint={"every": 4}), tmp_path)
    described = (tmp_path / "config.json").read_text()
    other = config(steps=8, optim={"name": "lion"}, ema={"decay": 0.0, "players": ()})
    with pytest.raises(ConfigError, match="config.optim.name: 'adamw' → 'lion'"):
        train_jax.run(other, tmp_path)
    assert (tmp_path / "config.json").read_text() == described
    history = train_jax.run(other, tmp_path, reset_optimizer=True)
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 9))
    rate = optim.schedule(config_lib.resolve(other).optim, 8)
    logged = [row["lr/generator"] for row in history if row["step"] > 4 and "loss" in row]
    np.testing.assert_allclose(logged, [rate(count) for count in range(4, 8)], rtol=1e-5)


def test_another_tokenizer_does_not_resume_a_run(tmp_path, monkeypatch):
    def make(c, workdir):
        return dataclasses.replace(original(c, workdir), artifacts={"tokenizer.json": content})

    content, original = '{"a": 0, "b": 1}', toy_task.make
    monkeypatch.setattr(toy_task, "make", make)
    train_jax.run(config(steps=3), tmp_path)
    hashes = (tmp_path / "artifacts.json").read_text()
    (tmp_path / "tokenizer.json").write_text('{"a": 1, "b": 0}')
    for _ in range(2):
        with pytest.raises(LoadError, match="wrong tokenizer for the weights.*Put the original file back"):
            train_jax.run(config(steps=5), tmp_path)
        assert (tmp_path / "artifacts.json").read_text() == hashes
    (tmp_path / "tokenizer.json").write_text(content)
    train_jax.run(config(steps=4), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4
