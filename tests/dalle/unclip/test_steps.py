"""Whole updates of the three tasks: several devices, micro-batches, bfloat16."""

import dataclasses
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from dalle_jax.unclip import decoder_task, prior_task, upsampler_task
from tests.trees import assert_close
from train_jax import config as config_lib
from train_jax import optim, sharding
from train_jax.data import sources
from train_jax.step import make_train_step, plan_state

TASKS = {"prior": prior_task, "decoder": decoder_task, "upsampler": upsampler_task}
UNDROPPED = {
    "prior": {"condition_dropout": 0.0},
    "decoder": {"caption_dropout": 0.0, "image_dropout": 0.0},
    "upsampler": {"blur": 0.0},
}
RATE, UPDATES = 0.1, 2


@pytest.fixture(scope="module", params=TASKS)
def case(request):
    """`(make, batch)`: the task of a tiny run with other options, and eight of its examples."""
    config, _ = request.getfixturevalue(f"tiny_{request.param}")

    def make(**compute):
        changed = config.to_dict() | UNDROPPED[request.param]
        changed["compute"] = changed.get("compute", {}) | compute
        return TASKS[request.param].make(config_lib.resolve(ConfigDict(changed)), None)

    task, data = make(), config_lib.resolve(config).data
    source = sources.from_config(data)
    records = source if task.records is None else task.records(source)
    rows = [task.example(records[i], np.random.default_rng(i)) for i in range(8)]
    return make, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def with_equal_noise(task):
    """The task with the same noise and timestep for all examples, so that its loss does not depend on the random key."""

    def draw_noise(key, shape=(), dtype=jnp.float32):
        noise = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float32)
        return jnp.broadcast_to(noise[None], shape).astype(dtype)

    def draw_timestep(key, shape, minval, maxval):
        return jnp.full(shape, maxval // 3)

    def loss(*arguments):
        with mock.patch.object(jax.random, "normal", draw_noise), mock.patch.object(jax.random, "randint", draw_timestep):
            return task.loss(*arguments)

    return dataclasses.replace(task, loss=loss)


def with_random_weights(task):
    """The task with initial weights that are nowhere zero, where networks begin with zeros."""
    shapes = nn.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0), {})[0]))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: (rng.standard_normal(x.shape) * np.prod(x.shape[:-1], initial=1.0) ** -0.5).astype(np.float32), shapes
    )
    extra = {} if task.pretrained is None else task.pretrained()[1]
    return dataclasses.replace(task, pretrained=lambda: (params, extra))


def run_steps(task, batch, devices: int = 1, fsdp: int = 1, accumulate: int = 1):
    """Losses of the updates, and the parameters after them."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": 1}, jax.devices()[:devices])

    def make_optimizer(params, axes):
        return optim.Optimizer(optax.sgd(RATE), {player: lambda _: RATE for player in params})

    with jax.set_mesh(mesh):
        plan = plan_state(task, make_optimizer, mesh, batch, seed=0)
        step = make_train_step(task, plan.optimizer, mesh, plan.abstract, seed=0, accumulate=accumulate)
        state, losses = plan.create(), []
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        for _ in range(UPDATES):
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device(case):
    make, batch = case
    return run_steps(with_equal_noise(with_random_weights(make())), batch)


def test_devices_and_micro_batches_compute_what_one_device_does_at_once(case, on_one_device):
    """Two devices of data by two of fsdp, in two micro-batches."""
    make, batch = case
    losses, params = run_steps(with_equal_noise(with_random_weights(make())), batch, 4, fsdp=2, accumulate=2)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    assert_close(params, on_one_device[1], 1e-5)
    assert losses[1] < losses[0]


def test_bfloat16_trains_as_float32_does(case, on_one_device):
    make, batch = case
    losses, params = run_steps(with_equal_noise(with_random_weights(make(dtype="bfloat16"))), batch)
    np.testing.assert_allclose(losses, on_one_device[0], rtol=0.02)
    assert losses[1] < losses[0]
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
