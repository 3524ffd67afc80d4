"""Training step of all models: one gradient, one optax transformation, one jitted function with a donated state.

    state, metrics = step(state, batch)

The step is independent of the model. The two players of a GAN are two keys of `params`: the sum of their losses has one
gradient, and the optimiser applies a separate rule to each player.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from train_jax import optim, sharding
from train_jax.data.stream import BROKEN
from train_jax.errors import ConfigError
from train_jax.task import Task, average_statistics

COUNTERS = ("skipped", "streak", "broken")
NOTICE = "_notice"  # int32 [batch shards]: nonzero if a host requests an exchange; see train_jax.lockstep


@flax.struct.dataclass
class TrainState:
    """Training state: all arrays that change in training and that a checkpoint contains.

    Attributes:
      step: int32, number of updates, skipped ones included.
      params: parameters by player, float32.
      extra: state of the task without gradients.
      opt_state: state of the optax transformation.
      ema: moving averages by player; None if no player is averaged.
      counters: int32 by name, since the beginning of the run: `skipped` updates with non-finite gradients, `streak` of
        consecutive skipped updates, `broken` samples that were replaced.
    """

    step: jax.Array
    params: dict[str, Any]
    extra: Any
    opt_state: Any
    ema: dict[str, Any] | None
    counters: dict[str, jax.Array]


class StatePlan(NamedTuple):
    """Plan of the initial state, before its creation.

    Attributes:
      create: function that creates the sharded state.
      abstract: shapes, dtypes and shardings of the state.
      optimizer: optimiser of the run.
      init: pure function that returns the initial state; None if weights are read from files.
    """

    create: Callable[[], TrainState]
    abstract: TrainState
    optimizer: optim.Optimizer
    init: Callable[[], TrainState] | None


def plan_state(
    task: Task, make_optimizer: Callable, mesh: Mesh, batch, *, seed: int, ema_players: tuple[str, ...] = ()
) -> StatePlan:
    """Plans the initial state of a run, without allocating arrays.

    Args:
      make_optimizer: `(abstract params, logical axes by path) -> Optimizer`.
      batch: dict of arrays or ShapeDtypeStructs with the shapes of a batch of any size.
      ema_players: players whose parameters are averaged.

    The same seed gives the same parameters on any mesh.
    """
    example = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}

    def init_weights():
        # Created inside the compiled program; otherwise key and zeros would be arrays on every device.
        return task.init(_split_seed(seed)[0], jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example))

    boxed_params, boxed_extra = jax.eval_shape(init_weights)
    check_ema_players(ema_players, boxed_params)
    optimizer = make_optimizer(sharding.unbox(boxed_params), sharding.logical_axes(boxed_params))

    def init_state(params, extra) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra=extra,
            opt_state=optimizer.tx.init(params),
            # Copies: a donated buffer must not appear twice.
            ema={player: jax.tree.map(jnp.copy, params[player]) for player in ema_players} or None,
            counters={name: jnp.zeros((), jnp.int32) for name in COUNTERS},
        )

    def init() -> TrainState:
        return init_state(*sharding.unbox(init_weights()))

    abstract = jax.eval_shape(init)
    param_shardings = sharding.shardings(boxed_params, mesh)
    state_shardings = sharding.like_params(abstract, abstract.params, param_shardings, mesh).replace(
        params=param_shardings,
        extra=sharding.shardings(boxed_extra, mesh),
        ema={player: param_shardings[player] for player in ema_players} or None,
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state_shardings)

    def create() -> TrainState:
        if task.pretrained is None:
            return jax.jit(init, out_shardings=state_shardings)()
        weight_shardings = (state_shardings.params, state_shardings.extra)
        initial_weights = jax.jit(lambda: sharding.unbox(init_weights()), out_shardings=weight_shardings)()
        # Outside of compiled functions, which would embed the weights as constants.
        weights = _overlay(initial_weights, task.pretrained())
        return jax.jit(init_state, out_shardings=state_shardings, donate_argnums=(0, 1))(*weights)

    return StatePlan(create, abstract, optimizer, init if task.pretrained is None else None)


def check_ema_players(ema_players: Sequence[str], players: Iterable[str]) -> None:
    """Raises ConfigError if `ema_players` contains unknown players."""
    if unknown := set(ema_players) - set(players):
        raise ConfigError(f"config.ema.players names {sorted(unknown)}; this task's players are {sorted(players)}")


def _split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """Splits a seed into the keys of weight initialisation and of training."""
    weights, training = jax.random.split(jax.random.key(seed))
    return weights, training


def _overlay(initial, values):
    """Replaces arrays of the tree `initial` by those of `values`, a subtree of NumPy arrays."""
    if isinstance(initial, Mapping | tuple):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        merged = dict(initial.items() if isinstance(initial, Mapping) else enumerate(initial))
        for name, value in pairs:
            merged[name] = _overlay(merged[name], value)
        return merged if isinstance(initial, Mapping) else tuple(merged.values())
    # Every host has the full array; each device copies its shard.
    return jax.make_array_from_callback(
        initial.shape, initial.sharding, lambda index: np.asarray(values[index], dtype=initial.dtype)
    )


def make_train_step(
    task: Task,
    optimizer: optim.Optimizer,
    mesh: Mesh,
    abstract_state: TrainState,
    *,
    seed: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    freeze: Sequence[str] = (),
) -> Callable:
    """Makes the jitted function `step(state, batch) -> (state, metrics)`. `state` is donated and keeps its shardings.

    Args:
      abstract_state: abstract state with shardings, from `plan_state`.
      seed: random seed. Keys are folded from (seed, step, micro-batch), so a resumed run equals an uninterrupted run.
      accumulate: number of micro-batches whose gradients are averaged. All micro-batches see the same state, and
        `Task.revise` is called once with the statistics of all of them. Statistics inside a loss (batch norm, an entropy of
        mean probabilities) are computed per micro-batch.
      ema_decay: decay of the moving average. After n updates the decay is at most `(1 + n) / (10 + n)`.
      freeze: patterns for the paths of parameters without gradients.

    Metrics are scalars: those of the task (averaged over micro-batches), `loss`, `grad_norm[/player]`, the learning rate
    `lr[/player]` of this update, the counters of the state, and the maximum of `NOTICE` over the hosts. An update with
    non-finite loss or gradient norm is skipped: it changes only `step` and the counters, and does not advance schedules.
    """
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: optim.matches(freeze, sharding.path_name(path)), abstract_state.params
    )

    def gradients(params, extra, batch, key, step):
        """Computes loss, metrics, gradients, and statistics with a leading axis of micro-batches."""

        @sharding.with_rules
        def loss(params, extra, step, batch, key):
            params = jax.tree.map(lambda p, is_frozen: jax.lax.stop_gradient(p) if is_frozen else p, params, frozen)
            return task.loss(params, extra, batch, key, step)

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (value, (metrics, statistics)), grads = value_and_grad(params, extra, step, batch, key)
            return value, metrics, grads, jax.tree.map(lambda x: x[None], statistics)

        def accumulate_gradients(batch, constants, key):
            def add_micro_batch(grad_sum, inputs):
                batch, index = inputs
                (value, (metrics, statistics)), grads = value_and_grad(*constants, batch, jax.random.fold_in(key, index))
                return jax.tree.map(jnp.add, grad_sum, grads), (value, metrics, statistics)

            inputs = (jax.tree.map(lambda x: sharding.split_batch(x, accumulate), batch), jnp.arange(accumulate))
            grad_sum, results = jax.lax.scan(add_micro_batch, jax.tree.map(jnp.zeros_like, constants[0]), inputs)
            return sharding.mean_over_data((jax.tree.map(lambda g: g / accumulate, grad_sum), results))

        constants = (params, extra, step)
        if task.mean_over_examples:
            results = sharding.map_over_data(accumulate_gradients, batch, constants, key, P())
        else:
            results = accumulate_gradients(batch, constants, key)
        grads, (values, metrics, statistics) = results
        return jnp.mean(values), average_statistics(metrics), grads, statistics

    def step(state: TrainState, batch):
        batch = dict(batch)
        notice = sharding.largest(batch.pop(NOTICE, jnp.zeros((sharding.parts(mesh),), jnp.int32)), mesh)
        broken = jnp.sum(batch.pop(BROKEN, jnp.zeros((1,), jnp.int32)))
        loss_key, revise_key = jax.random.split(jax.random.fold_in(_split_seed(seed)[1], state.step))
        loss, metrics, grads, statistics = gradients(state.params, state.extra, batch, loss_key, state.step)

        norms = {player: optax.tree.norm(g) for player, g in grads.items()}
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        moved = {}
        updates_done = state.step - state.counters["skipped"]
        if task.revise is None:
            extra = state.extra | average_statistics(statistics)
        else:
            revise = sharding.with_rules(task.revise)
            params, extra, moved, revision_metrics = revise(params, state.extra, statistics, revise_key, updates_done)
            opt_state = optim.reset_moments(opt_state, moved, params)
            metrics |= revision_metrics
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1 + updates_done) / (10 + updates_done))
            ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, {player: params[player] for player in ema})
            ema = optim.replace_rows(ema, moved, optim.by_path(params))

        def keep_if_finite(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        skipped = 1 - finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=keep_if_finite(params, state.params),
            extra=keep_if_finite(extra, state.extra),
            opt_state=keep_if_finite(opt_state, state.opt_state),
            ema=keep_if_finite(ema, state.ema),
            counters={
                "skipped": state.counters["skipped"] + skipped,
                "streak": (state.counters["streak"] + 1) * skipped,
                "broken": state.counters["broken"] + broken,
            },
        )
        is_single_player = len(norms) == 1
        metrics = dict(metrics, loss=loss, **{NOTICE: notice}, **new_state.counters)
        for player, norm in norms.items():
            metrics["grad_norm" if is_single_player else f"grad_norm/{player}"] = norm
            metrics["lr" if is_single_player else f"lr/{player}"] = optimizer.schedules[player](updates_done)
        return new_state, metrics

    state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(
        step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
