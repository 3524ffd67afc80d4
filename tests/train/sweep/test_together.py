"""Runs that train together, against the same runs made alone."""

import jax
import numpy as np
import pytest
from drive_toy import config, metric_rows

import train_jax
from train_jax import trained_weights
from train_jax.sweep.together import train_together

SHORT = {"steps": 50, "log_every": 25, "checkpoint": {"every": 25, "keep_last": 2}}
SGD = {"players": {"discriminator": {"weight_decay": 0.0}}}
POINTS = {
    "a": {"seed": 0, "optim": {"lr": 1e-3, "warmup_steps": 5, "weight_decay": 0.1, **SGD}, "ema": {"decay": 0.9}},
    "b": {"seed": 1, "optim": {"lr": 3e-3, "warmup_steps": 8, "weight_decay": 0.3, **SGD}, "ema": {"decay": 0.99}},
    "c": {"seed": 2, "optim": {"lr": 2e-3, "warmup_steps": 5, "weight_decay": 0.1, **SGD}, "steps": 40},
}


def make(folder, names=POINTS, **options):
    return {name: (config(**SHORT | POINTS[name] | options), folder / name) for name in names}


def fail(name, error):
    raise error


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for run_config, workdir in make(folder).values():
        train_jax.run(run_config, workdir)
    return folder


def assert_same_run(run, reference):
    rows, expected = metric_rows(run), metric_rows(reference)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} at {row['step']}")
    weights, expected = (trained_weights.load_weights(path / "checkpoints")[:2] for path in (run, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), weights, expected)


def test_runs_equal_those_made_alone(alone, tmp_path):
    train_together(make(tmp_path), fail)
    for name in POINTS:
        assert_same_run(tmp_path / name, alone / name)
