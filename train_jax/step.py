"""The training step that every model shares: one gradient, one optax transformation, one jitted and donated function.

    state, metrics = step(state, batch)

It knows no model. Two players (a GAN) are two keys of `params`: their losses are summed into one scalar, so there is
one gradient, and the optimiser gives each its own rule.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from train_jax import sharding
from train_jax.errors import ConfigError
from train_jax.task import Task

BROKEN = "_broken"  # int32 [B]: how many unreadable samples the pipeline replaced to fill each row
NOTICE = "_notice"  # int32 [parts of the batch]: not 0 where a host has something to tell; see train_jax.train


@flax.struct.dataclass
class TrainState:
    """All that changes while training; what a checkpoint holds.

    Attributes:
      step: int32, updates tried so far (a skipped one counts).
      params: dict by player, float32.
      extra: the task's state without gradients.
      opt_state: optax's.
      ema: average of the parameters of the players that have one, else None.
      counters: int32 by name: `skipped` updates with non-finite gradients, `streak` of them without a good one
        between, `broken` samples that were replaced.
    """

    step: jax.Array
    params: dict[str, Any]
    extra: Any
    opt_state: Any
    ema: dict[str, Any] | None
    counters: dict[str, jax.Array]


def init_state(
    task: Task, make_tx: Callable, mesh: Mesh, batch, *, seed: int, ema_players: tuple[str, ...] = ()
) -> tuple[Callable[[], TrainState], TrainState, optax.GradientTransformation]:
    """How to make the first state, its abstract twin with shardings, and the optimiser. Nothing is allocated yet.

    Args:
      make_tx: `(abstract params, logical axes by path) -> optax transformation`.
      batch: dict of arrays or ShapeDtypeStructs with the global batch's shapes.
      ema_players: the players whose parameters are averaged.

    The same seed gives the same parameters on any mesh.
    """
    key = jax.random.key(seed)
    boxed_params, boxed_extra = jax.eval_shape(task.init, key, batch)
    unknown = set(ema_players) - set(boxed_params)
    if unknown:
        raise ConfigError(f"config.ema.players names {sorted(unknown)}; this task's players are {sorted(boxed_params)}")
    tx = make_tx(sharding.unbox(boxed_params), sharding.logical_axes(boxed_params))

    def create(key, batch) -> TrainState:
        return begin(*sharding.unbox(task.init(key, batch)))

    def begin(params, extra) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra=extra,
            opt_state=tx.init(params),
            # Copies: a donated buffer must not appear twice.
            ema={player: jax.tree.map(jnp.copy, params[player]) for player in ema_players} or None,
            counters={name: jnp.zeros((), jnp.int32) for name in ("skipped", "streak", "broken")},
        )

    abstract = jax.eval_shape(create, key, batch)
    param_shardings = sharding.shardings(boxed_params, mesh)
    state_shardings = sharding.like_params(abstract, abstract.params, param_shardings, mesh).replace(
        params=param_shardings,
        extra=sharding.shardings(boxed_extra, mesh),
        ema={player: param_shardings[player] for player in ema_players} or None,
    )
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, state_shardings)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)

    def make() -> TrainState:
        if task.pretrained is None:
            return jax.jit(create, out_shardings=state_shardings)(key, zeros)
        drawn = jax.jit(
            lambda key, batch: sharding.unbox(task.init(key, batch)),
            out_shardings=(state_shardings.params, state_shardings.extra),
        )(key, zeros)
        # Not inside a compiled function, of which the weights would become a part.
        weights = _overlaid(drawn, task.pretrained())
        return jax.jit(begin, out_shardings=state_shardings, donate_argnums=(0, 1))(*weights)

    return make, abstract, tx


def _overlaid(drawn, given):
    """`drawn` with the arrays of `given`, whose structure is a part of its."""
    if isinstance(drawn, Mapping | tuple):
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        found = dict(drawn.items() if isinstance(drawn, Mapping) else enumerate(drawn))
        for name, value in pairs:
            found[name] = _overlaid(found[name], value)
        return found if isinstance(drawn, Mapping) else tuple(found.values())
    # Every host has the array; its devices take their parts.
    return jax.make_array_from_callback(
        drawn.shape, drawn.sharding, lambda part: np.asarray(given[part], dtype=drawn.dtype)
    )


def _moved(tree, moved: Mapping[str, jax.Array], change: Callable):
    """`tree` with `change(leaf, mask of rows)` for each leaf whose path ends with a parameter's of which rows moved."""

    def visit(path, leaf):
        name = sharding.path_name(path)
        for parameter, rows in moved.items():
            if (name == parameter or name.endswith(f"/{parameter}")) and leaf.shape[:1] == rows.shape:
                return change(leaf, rows.reshape(-1, *(1,) * (leaf.ndim - 1)), parameter)
        return leaf

    return jax.tree_util.tree_map_with_path(visit, tree)


def _by_path(params) -> dict[str, jax.Array]:
    return {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    abstract_state: TrainState,
    *,
    seed: int,
    schedules: Mapping[str, Callable],
    accumulate: int = 1,
    ema_decay: float = 0.0,
) -> Callable:
    """The jitted `step(state, batch) -> (state, metrics)`; `state` is donated, its shardings are kept.

    Args:
      abstract_state: as `init_state` gives it, with shardings.
      seed: keys are folded from (seed, step, micro-batch): a resumed run draws what the uninterrupted one would.
      schedules: learning rate by player, for the metrics.
      accumulate: micro-batches whose gradients are averaged before the update. Losses over a batch (contrastive ones)
        then see the micro-batch alone.
      ema_decay: decay of the average; it starts at `(1 + n) / (10 + n)` after n updates so that early weights fade.

    Metrics are scalars: the task's own (averaged over micro-batches), `loss`, `grad_norm[/player]`, `lr[/player]`,
    `skipped`, `streak`, `broken`, and the hosts' largest `NOTICE`. An update whose loss or gradient norm is not finite
    changes nothing but `step` and the counters.
    """

    def gradients(params, extra, batch, key, step):
        def loss(params, extra, batch, key):
            return task.loss(params, extra, batch, key, step)

        value_and_grad = jax.value_and_grad(sharding.with_rules(loss), has_aux=True)
        if accumulate == 1:
            (value, (metrics, extra)), grads = value_and_grad(params, extra, batch, key)
            return value, metrics, extra, grads

        def micro(carry, inputs):
            extra, grads = carry
            batch, index = inputs
            (value, (metrics, extra)), new = value_and_grad(params, extra, batch, jax.random.fold_in(key, index))
            return (extra, jax.tree.map(jnp.add, grads, new)), (value, metrics)

        zeros = jax.tree.map(jnp.zeros_like, params)
        inputs = (jax.tree.map(lambda x: sharding.split_batch(x, accumulate, mesh), batch), jnp.arange(accumulate))
        (extra, grads), (values, metrics) = jax.lax.scan(micro, (extra, zeros), inputs)
        grads = jax.tree.map(lambda g: g / accumulate, grads)
        return jnp.mean(values), jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics), extra, grads

    def step(state: TrainState, batch):
        batch = dict(batch)
        notice = sharding.largest(batch.pop(NOTICE, jnp.zeros((sharding.parts(mesh),), jnp.int32)), mesh)
        broken = jnp.sum(batch.pop(BROKEN, jnp.zeros((1,), jnp.int32)))
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, metrics, extra, grads = gradients(state.params, state.extra, batch, key, state.step)

        norms = {player: optax.tree.norm(g) for player, g in grads.items()}
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        moved = {}
        if task.revise is not None:
            params, extra, moved = task.revise(params, extra, state.step)
            opt_state = _moved(opt_state, moved, lambda leaf, rows, _: jnp.where(rows, 0, leaf))
        if ema is not None:
            done = (state.step - state.counters["skipped"]).astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + done) / (10 + done))
            ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, {player: params[player] for player in ema})
            fresh = _by_path(params)
            ema = _moved(ema, moved, lambda leaf, rows, name: jnp.where(rows, fresh[name], leaf))

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
        alone = len(norms) == 1
        metrics = dict(metrics, loss=loss, **{NOTICE: notice}, **new_state.counters)
        for player, norm in norms.items():
            metrics["grad_norm" if alone else f"grad_norm/{player}"] = norm
            metrics["lr" if alone else f"lr/{player}"] = schedules[player](state.step)
        return new_state, metrics

    state_shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    return jax.jit(
        step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
