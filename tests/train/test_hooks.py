"""Hooks: called in order with what the record holds, and refused by name before anything is compiled."""

import sys
import types

import jax
import numpy as np
import pytest
from drive_toy import config

import train_jax
from train_jax import hooks, metrics
from train_jax.errors import ConfigError
from train_jax.sharding import path_name


def test_hooks_are_called_with_what_the_record_holds(tmp_path, monkeypatch):
    calls, histograms = [], {}

    class Recorder(hooks.Hook):
        def on_update(self, step, state):
            assert int(state.step) == step
            calls.append(("update", step))

        def on_log(self, step, state, metrics):
            calls.append(("log", step, metrics["loss"]))
            if step == 4:
                histograms["expected"] = jax.device_get(state.params)

        def on_evaluation(self, step, metrics, images):
            assert isinstance(self.writer, Writer) and self.prepared.config.steps == 4
            calls.append(("evaluation", step, metrics, list(images)))

    def write_histogram(self, step, name, values):
        histograms[step, name] = values

    Writer = metrics.Writer
    monkeypatch.setattr(Writer, "write_histogram", write_histogram)
    monkeypatch.setitem(sys.modules, "my_hooks", types.SimpleNamespace(Recorder=Recorder))
    names = ("my_hooks.Recorder", "train_jax.hooks.WeightHistograms")
    history = train_jax.run(config(steps=4, log_every=2, hooks=names), tmp_path)
    losses = [row["loss"] for row in history if "loss" in row]
    assert calls == [
        ("update", 1),
        ("update", 2),
        ("log", 2, losses[0]),
        ("update", 3),
        ("update", 4),
        ("log", 4, losses[1]),
        ("evaluation", 4, {"end/norm": history.last("end/norm")}, ["end/grey"]),
    ]
    leaves = jax.tree_util.tree_leaves_with_path(histograms.pop("expected"))
    assert histograms.keys() == {(step, f"params/{path_name(path)}") for path, _ in leaves for step in (2, 4)}
    for path, value in leaves:
        np.testing.assert_array_equal(histograms[4, f"params/{path_name(path)}"], value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("Recorder", "config.hooks has 'Recorder'; name classes of train_jax.hooks.Hook"),
        ("no_such.Recorder", "config.hooks has 'no_such.Recorder': No module named 'no_such'"),
        ("train_jax.hooks.Recorder", "config.hooks has 'train_jax.hooks.Recorder': .* has no attribute 'Recorder'"),
        ("train_jax.metrics.Writer", "config.hooks has 'train_jax.metrics.Writer'; name classes"),
    ],
)
def test_names_of_no_hooks_are_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        hooks.import_classes([name])
