"""The training step that every model shares: one gradient, one optax transformation, one jitted and donated function.

    state, metrics = step(state, batch)

It knows no model. Two players (a GAN) are two keys of `params`: their losses are summed into one scalar, so there is
one gradient, and the optimiser gives each its own rule.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from train_jax import optim, sharding
from train_jax.data.stream import BROKEN
from train_jax.errors import ConfigError
from train_jax.task import Task, averaged

COUNTERS = ("skipped", "streak", "broken")
NOTICE = "_notice"  # int32 [parts of the batch]: not 0 where a host has something to tell; see train_jax.train


@flax.struct.dataclass
class TrainState:
    """The training state: all that changes in training, and all that a checkpoint holds.

    Attributes:
      step: int32, updates tried so far (a skipped one counts).
      params: dict by player, float32.
      extra: the task's state without gradients.
      opt_state: optax's.
      ema: average of the parameters of the players that have one, else None.
      counters: int32 by name, since the beginning of the run: `skipped` updates with non-finite gradients, `streak` of
        them up to now without a good one between, `broken` samples that were replaced.
    """

    step: jax.Array
    params: dict[str, Any]
    extra: Any
    opt_state: Any
    ema: dict[str, Any] | None
    counters: dict[str, jax.Array]


class StatePlan(NamedTuple):
    """Plan of the initial state: shapes and shardings, before it is created.

    Attributes:
      create: makes it, sharded.
      abstract: its shapes, dtypes and shardings.
    """

    create: Callable[[], TrainState]
    abstract: TrainState
    optimizer: optim.Optimizer


def plan_state(
    task: Task, make_optimizer: Callable, mesh: Mesh, batch, *, seed: int, ema_players: tuple[str, ...] = ()
) -> StatePlan:
    """Plans the initial state of a run; nothing is allocated or run yet.

    Args:
      make_optimizer: `(abstract params, logical axes by path) -> Optimizer`.
      batch: dict of arrays or ShapeDtypeStructs with a batch's shapes, of any number of examples.
      ema_players: the players whose parameters are averaged.

    The same seed gives the same parameters on any mesh.
    """
    example = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}

    def draw():
        # Inside the compiled program: made outside, key and zeros would be arrays on every device.
        return task.init(_keys(seed)[0], jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example))

    boxed_params, boxed_extra = jax.eval_shape(draw)
    check_averaged(ema_players, boxed_params)
    optimizer = make_optimizer(sharding.unbox(boxed_params), sharding.logical_axes(boxed_params))

    def begin(params, extra) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra=extra,
            opt_state=optimizer.tx.init(params),
            # Copies: a donated buffer must not appear twice.
            ema={player: jax.tree.map(jnp.copy, params[player]) for player in ema_players} or None,
            counters={name: jnp.zeros((), jnp.int32) for name in COUNTERS},
        )

    def create() -> TrainState:
        return begin(*sharding.unbox(draw()))

    abstract = jax.eval_shape(create)
    param_shardings = sharding.shardings(boxed_params, mesh)
    state_shardings = sharding.like_params(abstract, abstract.params, param_shardings, mesh).replace(
        params=param_shardings,
        extra=sharding.shardings(boxed_extra, mesh),
        ema={player: param_shardings[player] for player in ema_players} or None,
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state_shardings)

    def make() -> TrainState:
        if task.pretrained is None:
            return jax.jit(create, out_shardings=state_shardings)()
        drawn = jax.jit(lambda: sharding.unbox(draw()), out_shardings=(state_shardings.params, state_shardings.extra))()
        # Not inside a compiled function, of which the weights would become a part.
        weights = _overlaid(drawn, task.pretrained())
        return jax.jit(begin, out_shardings=state_shardings, donate_argnums=(0, 1))(*weights)

    return StatePlan(make, abstract, optimizer)


def check_averaged(ema_players: Sequence[str], players: Iterable[str]) -> None:
    """Raises ConfigError for averages of players that a task does not have."""
    if unknown := set(ema_players) - set(players):
        raise ConfigError(f"config.ema.players names {sorted(unknown)}; this task's players are {sorted(players)}")


def _keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """Splits a seed into the keys of initial weights and of training: `split(key)[i]` equals `fold_in(key, i)`."""
    weights, training = jax.random.split(jax.random.key(seed))
    return weights, training


def _overlaid(drawn, values):
    """Overlays the initialised tree `drawn` with the arrays of `values`, whose structure is a part of its own."""
    if isinstance(drawn, Mapping | tuple):
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        merged = dict(drawn.items() if isinstance(drawn, Mapping) else enumerate(drawn))
        for name, value in pairs:
            merged[name] = _overlaid(merged[name], value)
        return merged if isinstance(drawn, Mapping) else tuple(merged.values())
    # Every host has the array; its devices take their parts.
    return jax.make_array_from_callback(
        drawn.shape, drawn.sharding, lambda part: np.asarray(values[part], dtype=drawn.dtype)
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
    """Makes the jitted `step(state, batch) -> (state, metrics)`; `state` is donated, its shardings are kept.

    Args:
      abstract_state: as `plan_state` gives it, with shardings.
      seed: keys are folded from (seed, step, micro-batch): a resumed run draws what the uninterrupted one would.
      accumulate: micro-batches whose gradients are averaged before the update. Each begins with the same state; what
        follows from their statistics (`Task.revise`) follows once, from all of them. Inside a loss, statistics of a batch
        (batch norm, an entropy of mean probabilities) are those of the micro-batch.
      ema_decay: decay of the average; it starts at `(1 + n) / (10 + n)` after n updates so that early weights fade.
      freeze: patterns of paths of parameters that get no gradient.

    Metrics are scalars: the task's own (averaged over micro-batches), `loss`, `grad_norm[/player]`, the `lr[/player]` of
    this update, the state's counters, and the hosts' largest `NOTICE`. An update whose loss or gradient norm is not finite
    changes nothing but `step` and the counters; schedules, which count the updates that were made, stand still.
    """
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: optim.matches(freeze, sharding.path_name(path)), abstract_state.params
    )

    def gradients(params, extra, batch, key, step):
        """Computes loss, metrics, gradients, and statistics, which are stacked by micro-batch."""

        @sharding.with_rules
        def loss(params, batch, key):
            trained = jax.tree.map(lambda p, fixed: jax.lax.stop_gradient(p) if fixed else p, params, frozen)
            return task.loss(trained, extra, batch, key, step)

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (value, (metrics, statistics)), grads = value_and_grad(params, batch, key)
            return value, metrics, grads, jax.tree.map(lambda x: x[None], statistics)

        def micro(grads, inputs):
            batch, index = inputs
            (value, (metrics, statistics)), new = value_and_grad(params, batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, grads, new), (value, metrics, statistics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        inputs = (jax.tree.map(lambda x: sharding.split_batch(x, accumulate, mesh), batch), jnp.arange(accumulate))
        grads, (values, metrics, statistics) = jax.lax.scan(micro, zeros, inputs)
        return jnp.mean(values), averaged(metrics), jax.tree.map(lambda g: g / accumulate, grads), statistics

    def step(state: TrainState, batch):
        batch = dict(batch)
        notice = sharding.largest(batch.pop(NOTICE, jnp.zeros((sharding.parts(mesh),), jnp.int32)), mesh)
        broken = jnp.sum(batch.pop(BROKEN, jnp.zeros((1,), jnp.int32)))
        loss_key, revise_key = jax.random.split(jax.random.fold_in(_keys(seed)[1], state.step))
        loss, metrics, grads, statistics = gradients(state.params, state.extra, batch, loss_key, state.step)

        norms = {player: optax.tree.norm(g) for player, g in grads.items()}
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        moved = {}
        done = state.step - state.counters["skipped"]
        if task.revise is None:
            extra = state.extra | averaged(statistics)
        else:
            revise = sharding.with_rules(task.revise)
            params, extra, moved, revision_metrics = revise(params, state.extra, statistics, revise_key, done)
            opt_state = optim.reset_moments(opt_state, moved, params)
            metrics |= revision_metrics
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1 + done) / (10 + done))
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
            metrics["lr" if is_single_player else f"lr/{player}"] = optimizer.schedules[player](done)
        return new_state, metrics

    state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(
        step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
