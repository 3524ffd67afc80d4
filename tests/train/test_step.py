"""The shared step against loops written by hand: two players, two rules, accumulation, averages, bad gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_task as toy
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import optim, sharding
from train_jax.step import BROKEN, make_train_step, plan_state
from train_jax.task import Task

STEPS = 6
EMA = 0.3  # below (1 + n) / (10 + n) from the fourth update on, so that both limits of the decay occur


def options(**changes):
    full = config_lib.OptimOptions.defaults()
    full.update(ConfigDict({"lr": 1e-2, "schedule": "constant", "clip": 0.5, **changes}))
    return full


_BUILT = {}  # compiled steps, for tests that ask for the same one


def build(mesh_sizes=(1, 1, 1), *, optim_options=None, task=toy.TASK, ema=0.0, accumulate=1, batch=None):
    """`(mesh, create, step)`; the same arguments give the same step, and first state, which are compiled once."""
    optim_options = options() if optim_options is None else optim_options
    batch = toy.batch() if batch is None else batch
    shapes = tuple((name, x.shape) for name, x in batch.items())
    key = (mesh_sizes, optim_options.to_json(), id(task), ema, accumulate, shapes)
    if key in _BUILT:
        return _BUILT[key][:-1]
    count = int(np.prod(mesh_sizes))
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh_sizes, strict=True)), jax.devices()[:count])

    def make_optimizer(params, axes):
        return optim.make(optim_options, params, STEPS, axes)

    players = ("generator",) if ema else ()
    plan = plan_state(task, make_optimizer, mesh, batch, seed=3, ema_players=players)
    step = make_train_step(
        task,
        plan.optimizer,
        mesh,
        plan.abstract,
        seed=3,
        accumulate=accumulate,
        ema_decay=ema,
        freeze=optim_options.freeze,
    )
    create = create_once(plan)
    _BUILT[key] = mesh, create, step, task  # with the task: another one could get its id
    return _BUILT[key][:-1]


def create_once(plan):
    """`plan.create`, run once; each call returns a copy, since steps donate it."""
    initial = []

    def create():
        if not initial:
            initial.append(jax.device_get(plan.create()))
        return jax.device_put(jax.tree.map(np.array, initial[0]), jax.tree.map(lambda x: x.sharding, plan.abstract))

    create.first = plan.create
    return create


def train(steps=STEPS, batches=None, **kwargs):
    """The state after the last update, and the metrics of each."""
    states, history = trajectory(steps, batches, **kwargs)
    return states[-1], history


def trajectory(steps=STEPS, batches=None, **kwargs):
    """The states before, between and after updates, and the metrics of each."""
    mesh, create, step = build(**kwargs)
    history = []
    with jax.set_mesh(mesh):
        state = create()
        states = [jax.device_get(state)]
        for index in range(steps):
            batch = toy.batch(seed=index) if batches is None else batches[index]
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            history.append(jax.device_get(metrics))
            states.append(jax.device_get(state))
    return states, history


WEIGHTS, TRAINING = jax.random.split(jax.random.key(3))


def noise_key(step):
    return jax.random.split(jax.random.fold_in(TRAINING, step))[0]


@jax.jit
def first_params():
    return sharding.unbox(toy.init(WEIGHTS, toy.batch()))[0]


def by_hand():
    """The textbook loop: two gradients, two optimisers, each with its own clipping."""
    params = first_params()
    rules = {
        "generator": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.0)),
        "discriminator": optax.chain(optax.clip_by_global_norm(0.25), optax.sgd(3e-2, momentum=0.9)),
    }
    states = {player: rules[player].init(params[player]) for player in params}
    losses = {"generator": toy.generator_loss, "discriminator": toy.discriminator_loss}

    @jax.jit
    def update(params, states, batch, key):
        noise = toy.NOISE * jax.random.normal(key, batch["z"].shape)
        new_params, new_states = {}, {}
        for position, player in enumerate(("generator", "discriminator")):
            grads = jax.grad(losses[player], argnums=position)(
                params["generator"], params["discriminator"], batch, noise
            )
            updates, new_states[player] = rules[player].update(grads, states[player], params[player])
            new_params[player] = optax.apply_updates(params[player], updates)
        return new_params, new_states

    for index in range(STEPS):
        params, states = update(params, states, toy.batch(seed=index), noise_key(index))
    return params


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b)


TWO_RULES = {"discriminator": {"name": "sgd", "lr": 3e-2, "clip": 0.25, "args": {"momentum": 0.9}}}


def test_two_players_equal_a_loop_with_two_optimisers():
    state, history = train(optim_options=options(players=TWO_RULES))
    assert_close(state.params, by_hand(), 1e-6)
    assert {"grad_norm/generator", "grad_norm/discriminator", "lr/generator", "lr/discriminator"} <= set(history[0])
    assert history[0]["lr/discriminator"] == np.float32(3e-2)


@pytest.mark.parametrize("moved, still", [("generator", "discriminator"), ("discriminator", "generator")])
def test_the_loss_of_one_player_moves_no_parameter_of_the_other(moved, still):
    def one_sided(params, extra, batch, rng, step):
        noise = toy.NOISE * jax.random.normal(rng, batch["z"].shape)
        frozen = jax.lax.stop_gradient(params)
        if moved == "generator":
            value = toy.generator_loss(params["generator"], frozen["discriminator"], batch, noise)
        else:
            value = toy.discriminator_loss(frozen["generator"], params["discriminator"], batch, noise)
        return value, ({}, extra)

    task = Task(init=toy.init, loss=one_sided, example=toy.example)
    start = first_params()
    state, _ = train(task=task, steps=2)
    assert_close(state.params[still], start[still], 0)
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(state.params[moved]), jax.tree.leaves(start[moved]), strict=True)
    )


@pytest.mark.parametrize("mesh_sizes", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_any_mesh_gives_the_numbers_of_one_device(mesh_sizes):
    single, single_history = train(ema=EMA)
    spread, spread_history = train(mesh_sizes=mesh_sizes, ema=EMA)
    assert_close(spread, single)
    assert_close(spread_history, single_history)


def test_parameters_moments_and_average_are_really_sharded():
    mesh, create, step = build((2, 2, 2), ema=EMA)
    with jax.set_mesh(mesh):
        state, _ = step(create(), jax.device_put(toy.batch(), sharding.batch_sharding(mesh)))
    kernels = [
        (sharding.path_name(path), x)
        for path, x in jax.tree_util.tree_leaves_with_path(state)
        if "hidden/kernel" in sharding.path_name(path)
    ]
    # Two players' parameters, Adam's two moments of each, and one average.
    assert len(kernels) == 2 + 4 + 1
    for name, x in kernels:
        assert x.sharding.shard_shape(x.shape) == (x.shape[0] // 2, x.shape[1] // 2), name


def test_accumulation_equals_the_mean_of_the_micro_batches_gradients():
    task = Task(init=toy.init, loss=quiet_loss, example=toy.example)
    state, history = train(task=task, accumulate=4, steps=3)
    full, full_history = train(task=task, accumulate=1, steps=3)
    # These losses are means over examples, so micro-batches of equal size average to the whole batch.
    assert_close(state.params, full.params)
    assert_close(history[-1]["loss"], full_history[-1]["loss"])
    spread, _ = train(task=task, accumulate=2, steps=3, mesh_sizes=(4, 2, 1))
    assert_close(spread.params, full.params)


def quiet_loss(params, extra, batch, rng, step):
    frozen = jax.lax.stop_gradient(params)
    noise = jnp.zeros_like(batch["z"])
    value = toy.generator_loss(params["generator"], frozen["discriminator"], batch, noise)
    return value + toy.discriminator_loss(frozen["generator"], params["discriminator"], batch, noise), ({}, extra)


def test_average_of_the_weights_follows_its_recurrence():
    states, _ = trajectory(ema=EMA)
    expected = states[0].params["generator"]
    for updates, state in enumerate(states[1:]):
        d = min(EMA, (1 + updates) / (10 + updates))
        expected = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, expected, state.params["generator"])
    assert set(states[-1].ema) == {"generator"}
    assert_close(states[-1].ema["generator"], expected)


def test_a_bad_batch_changes_nothing_but_the_counters():
    bad = toy.batch(seed=1)
    bad["x"][3, 2] = np.nan
    good = [toy.batch(seed=0), toy.batch(seed=2)]
    state, history = train(steps=1, batches=good, ema=EMA)
    after, bad_history = train(steps=2, batches=[good[0], bad], ema=EMA)
    for part in ("params", "opt_state", "extra", "ema"):
        assert_close(getattr(after, part), getattr(state, part), 0)
    assert after.step == 2 and after.counters["skipped"] == 1 and after.counters["streak"] == 1
    assert not np.isfinite(bad_history[1]["loss"])
    later, _ = train(steps=3, batches=[good[0], bad, good[1]], ema=EMA)
    assert later.counters["skipped"] == 1 and later.counters["streak"] == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(later.params))


def test_replaced_samples_are_added_up():
    batches = [{**toy.batch(seed=i), BROKEN: np.full((16,), i % 2, np.int32)} for i in range(4)]
    mesh, create, step = build((4, 1, 1))
    with jax.set_mesh(mesh):
        state = create()
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
    assert metrics["broken"] == 32


def test_the_state_is_donated():
    mesh, create, step = build(ema=EMA)
    with jax.set_mesh(mesh):
        state = create.first()
        step(state, toy.batch())
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_a_state_is_planned_without_an_array_and_made_without_a_batch():
    before = {id(x) for x in jax.live_arrays()}
    batch = {name: np.zeros((4096, 4), np.float32) for name in ("x", "z")}
    mesh, create, step = build((8, 1, 1), batch=batch)
    assert {id(x) for x in jax.live_arrays()} <= before, "planning runs nothing, not even where devices are absent"
    with jax.set_mesh(mesh):
        state = create.first()
    made = [x for x in jax.live_arrays() if id(x) not in before]
    assert len(made) <= len(jax.tree.leaves(state)) and all(4096 not in x.shape for x in made)


def test_keys_of_the_first_weights_are_never_those_of_training():
    def init(rng, batch):
        parts = jax.random.split(rng, 4)
        keys = [rng, *parts, *(key for part in parts for key in jax.random.split(part))]
        return {"player": {"w": jnp.zeros(())}}, {"keys": jnp.stack([jax.random.key_data(key) for key in keys])}

    def loss(params, extra, batch, rng, step):
        return params["player"]["w"], ({"key": jax.random.key_data(rng)}, {})

    state, history = train(task=Task(init=init, loss=loss, example=toy.example), steps=4)
    drawn = [tuple(np.asarray(row["key"]).tolist()) for row in history]
    assert len(set(drawn)) == 4 and not set(drawn) & {tuple(key) for key in np.asarray(state.extra["keys"]).tolist()}


def sum_of_weights(bad):
    """A task whose gradient is 1, and whose updates at the steps in `bad` are non-finite."""

    def loss(params, extra, batch, rng, step):
        is_bad = jnp.any(jnp.asarray(bad) == step)
        return jnp.where(is_bad, jnp.nan, jnp.sum(params["player"]["w"])), ({}, extra)

    return Task(init=lambda rng, batch: ({"player": {"w": jnp.zeros((1,))}}, {}), loss=loss, example=toy.example)


def test_the_logged_rate_is_the_one_used_also_after_skipped_updates():
    rule = options(name="sgd", lr=0.1, clip=0.0, schedule="linear", players={})
    mesh, create, step = build(optim_options=rule, task=sum_of_weights((1, 2, 4)))
    used, logged = [], []
    with jax.set_mesh(mesh):
        state = create()
        for _ in range(STEPS):
            before = float(state.params["player"]["w"][0])
            state, metrics = step(state, toy.batch())
            used.append(before - float(state.params["player"]["w"][0]))
            logged.append(float(metrics["lr"]))
    good = [0, 3, 5]
    np.testing.assert_allclose([used[i] for i in good], 0.1 * (1 - np.arange(3) / STEPS), rtol=1e-5)
    np.testing.assert_allclose([logged[i] for i in good], [used[i] for i in good], rtol=1e-5)


def test_frozen_parameters_count_neither_in_the_norm_nor_as_non_finite():
    def loss(params, extra, batch, rng, step):
        value, aux = toy.loss(params, extra, batch, rng, step)
        return value + jnp.sqrt(jnp.sum(params["generator"]["hidden"]["bias"])), aux  # whose slope at 0 is infinite

    task = Task(init=toy.init, loss=loss, example=toy.example)
    state, history = train(task=task, steps=1, optim_options=options(freeze=("generator/hidden",)))
    assert state.counters["skipped"] == 0
    grads = jax.jit(jax.grad(lambda p: toy.loss(p, {"mean": 0.0}, toy.batch(), noise_key(0), 0)[0]))(first_params())
    expected = optax.tree.norm(grads["generator"]["out"])
    np.testing.assert_allclose(history[0]["grad_norm/generator"], expected, rtol=1e-5)
    assert np.any(state.params["generator"]["out"]["kernel"] != first_params()["generator"]["out"]["kernel"])
