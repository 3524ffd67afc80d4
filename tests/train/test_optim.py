"""Schedules in closed form; every optimiser by name; decay, freezing and clipping by parameter path."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from train_jax import config as config_lib
from train_jax import lora, optim, sharding
from train_jax.compute import TransformerCompute
from train_jax.errors import ConfigError
from vqgan_jax.stage2.condition import ClassCondition
from vqgan_jax.stage2.model import CodeTransformerOptions, build

PARAMS = {
    "clip": {
        "dense": {"kernel": jnp.full((4, 6), 0.5), "bias": jnp.full((6,), 0.5)},
        "stack": {"kernel": jnp.full((3, 4, 2, 5), 0.5)},
        "logit_scale": jnp.asarray(2.0),
    }
}
AXES = {
    "clip/dense/kernel": ("embed", "mlp"),
    "clip/dense/bias": ("mlp",),
    "clip/stack/kernel": ("layers", "embed", "heads", "head_dim"),
    "clip/logit_scale": (),
}
GRADS = jax.tree.map(lambda x: jnp.linspace(0.1, 1.0, x.size).reshape(x.shape), PARAMS)


def options(**changes):
    full = config_lib.OptimOptions.defaults()
    full.update(ConfigDict({"lr": 0.1, "schedule": "constant", "clip": 0.0, **changes}))
    return full


def one_update(opt, params=PARAMS, grads=GRADS):
    tx, _ = optim.make(opt, params, 100, AXES)
    updates, state = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    return updates["clip"], state


@pytest.mark.parametrize(
    "name, closed_form",
    [
        ("cosine", lambda t: 0.1 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * min(t / 90, 1))))),
        ("linear", lambda t: 0.1 * (1 - 0.8 * min(t / 90, 1))),
        ("rsqrt", lambda t: 0.1 * math.sqrt(10 / (10 + t))),
        ("constant", lambda t: 0.1),
        ("wsd", lambda t: 0.1 * (1 - 0.8 * max(0, t - 70) / 20)),  # the last 20 of 100 updates
    ],
)
def test_schedules(name, closed_form):
    schedule = optim.schedule(options(schedule=name, warmup_steps=10, final_lr=0.2), 100)
    for step in range(10):
        np.testing.assert_allclose(schedule(step), 0.1 * step / 10, rtol=1e-6)
    for step in (10, 11, 55, 99, 100):
        np.testing.assert_allclose(schedule(step), closed_form(step - 10), rtol=1e-6)


def test_the_first_update_is_not_wasted_without_warm_up():
    assert float(optim.schedule(options(schedule="cosine"), 100)(0)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name", ["adamw", "lion", "adafactor", "sgd", "adam", "contrib.muon", "contrib.schedule_free_adamw", "lamb"]
)
def test_every_optimiser_moves_every_parameter(name):
    updates, _ = one_update(options(name=name))
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        assert np.all(np.isfinite(update)) and np.any(update != 0), path
        assert np.all(np.sign(update) * np.sign(0.5) <= 0) or name == "contrib.muon", path


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "contrib.muon", "contrib.schedule_free_adamw"])
def test_weight_decay_is_lr_times_decay_times_weight_and_spares_what_the_paths_say(name):
    plain, _ = one_update(options(name=name))
    decayed, _ = one_update(options(name=name, weight_decay=0.3))
    shrink = 0.1 * 0.3 * 0.5
    for module in ("dense", "stack"):
        np.testing.assert_allclose(decayed[module]["kernel"] - plain[module]["kernel"], -shrink, rtol=1e-4)
    np.testing.assert_array_equal(decayed["dense"]["bias"], plain["dense"]["bias"])
    np.testing.assert_array_equal(decayed["logit_scale"], plain["logit_scale"])


def test_adamw_equals_optax_called_by_hand():
    updates, _ = one_update(options(weight_decay=0.3, args={"b2": 0.98}))
    kernel, grad = PARAMS["clip"]["dense"]["kernel"], GRADS["clip"]["dense"]["kernel"]
    rule = optax.adamw(0.1, b2=0.98, weight_decay=0.3)
    expected, _ = rule.update(grad, rule.init(kernel), kernel)
    np.testing.assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-6)


def test_muon_orthogonalises_each_layer_of_a_stack_by_itself():
    # Well-conditioned gradients: the iteration amplifies rounding along small singular values.
    stack = jax.random.normal(jax.random.key(0), (3, 4, 2, 5))
    grads = {"clip": {**GRADS["clip"], "stack": {"kernel": stack}}}
    updates, _ = one_update(options(name="contrib.muon"), grads=grads)
    rule = optax.contrib.muon(0.1)
    for layer in range(3):
        matrix = stack[layer].reshape(4, 10)
        expected, _ = rule.update({"w": matrix}, rule.init({"w": matrix}), {"w": matrix})
        np.testing.assert_allclose(
            updates["stack"]["kernel"][layer].reshape(4, 10), expected["w"], rtol=1e-4, atol=1e-6
        )


def test_schedule_free_evaluates_its_average():
    rule = optax.contrib.schedule_free_adamw(0.1)
    tx, _ = optim.make(options(name="contrib.schedule_free_adamw"), PARAMS, 100, AXES)
    ours, state = PARAMS, tx.init(PARAMS)
    theirs, their_state = PARAMS, rule.init(PARAMS)
    update, their_update = jax.jit(tx.update), jax.jit(rule.update)
    for _ in range(5):
        updates, state = update(GRADS, state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, their_state = their_update(GRADS, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    expected = optax.contrib.schedule_free_eval_params(their_state, theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), optim.evaluation_params(state, ours), expected
    )
    unchanged = optim.evaluation_params(optax.adam(0.1).init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, unchanged, PARAMS)


@pytest.mark.parametrize("name", ["adamw", "contrib.schedule_free_adamw"])
def test_rows_that_moved_have_fresh_moments(name):
    """Their moments are zero, their evaluated values are the current ones; the other rows' states stay."""
    params = {"generator": {"codebook": jnp.arange(12.0).reshape(4, 3), "kernel": jnp.ones((4, 3))}}
    axes = {"generator/codebook": ("codes", "embed"), "generator/kernel": ("embed", "mlp")}
    tx, _ = optim.make(options(name=name, lr=0.1, warmup_steps=0, clip=0.0, weight_decay=0.0), params, 10, axes)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    rows = jnp.array([False, True, False, True])
    params["generator"]["codebook"] = jnp.where(rows[:, None], 7.0, params["generator"]["codebook"])
    reset = optim.reset_moments(state, {"generator/codebook": rows}, params)

    evaluated = optim.evaluation_params(reset, params)["generator"]
    np.testing.assert_allclose(evaluated["codebook"][rows], 7.0, rtol=1e-6)
    before = optim.evaluation_params(state, params)["generator"]
    np.testing.assert_array_equal(evaluated["codebook"][~rows], before["codebook"][~rows])
    np.testing.assert_array_equal(evaluated["kernel"], before["kernel"])
    ends = ("mu/generator/codebook", "nu/generator/codebook")
    moments = {path: x for path, x in optim.by_path(reset).items() if path.endswith(ends)}
    assert moments
    for path, x in moments.items():
        assert not np.any(x[rows]) and np.array_equal(x[~rows], optim.by_path(state)[path][~rows])


def test_frozen_parameters_have_no_update_and_no_moments():
    updates, state = one_update(options(freeze=(r"^clip/dense/",), clip=1.0))
    assert not np.any(updates["dense"]["kernel"]) and not np.any(updates["dense"]["bias"])
    assert np.any(updates["stack"]["kernel"])
    assert not any("dense" in sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))


@pytest.mark.parametrize("name", ["adamw", "lion", "contrib.muon", "contrib.schedule_free_adamw"])
def test_a_factor_on_the_rate_is_a_rate_of_its_own(name):
    """Parameters with a factor of 0.1 move as in a run with a tenth of the rate, the others as in one with all of it."""
    scaled, _ = one_update(options(name=name, weight_decay=0.5, lr_scale=(("stack", 0.1), ("clip/", 1.0))))
    full, _ = one_update(options(name=name, weight_decay=0.5))
    tenth, _ = one_update(options(name=name, weight_decay=0.5, lr=0.01))
    # Muon's iterations blow up small singular values, and with them the rounding of products formed in another order.
    tight = {"rtol": 1e-4, "atol": 3e-6} if name == "contrib.muon" else {"rtol": 1e-6}
    np.testing.assert_allclose(scaled["stack"]["kernel"], tenth["stack"]["kernel"], **tight)
    np.testing.assert_allclose(scaled["dense"]["kernel"], full["dense"]["kernel"], **tight)
    np.testing.assert_allclose(scaled["logit_scale"], full["logit_scale"], rtol=1e-6)


def test_each_player_is_clipped_by_its_own_norm():
    params = {"a": {"kernel": jnp.zeros((3,))}, "b": {"kernel": jnp.zeros((3,))}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0, 4.0])}, "b": {"kernel": jnp.array([0.1, 0.0, 0.0])}}
    axes = {"a/kernel": (None,), "b/kernel": (None,)}
    tx, _ = optim.make(options(name="sgd", lr=1.0, clip=1.0), params, 10, axes)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.6, 0, -0.8], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["kernel"], [-0.1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "adamw2"}, "not an optimiser of optax"),
        ({"name": "clip_by_global_norm"}, "not an optimiser of optax"),
        ({"schedule": "step"}, "cosine, linear, rsqrt, constant"),
        ({"args": {"beta2": 0.9}}, "optax's adamw takes"),
        ({"args": {"mask": True}}, "no_decay"),
        ({"name": "sgd", "weight_decay": 0.1}, "no weight decay"),
        ({"freeze": ("vision",)}, "matches no parameter"),
        ({"freeze": ("clip/logit", "kernel", "bias")}, r"freeze = .* freezes all parameters: there is nothing to train"),
        ({"players": {"generator": {"lr": 1.0}}}, r"players are \['clip'\]"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        optim.make(options(**changes), PARAMS, 100, AXES)


STACK = {"head": {"kernel": jnp.ones((2, 2))}, "positions": jnp.ones((3, 2))}
SCANNED = {**STACK, "transformer": {"blocks": {"mlp": {"kernel": jnp.ones((3, 2, 2))}}}}
UNROLLED = {**STACK, "transformer": {f"block_{i}": {"mlp": {"kernel": jnp.ones((2, 2))}} for i in range(3)}}


def layer_axes(tower):
    leaves = jax.tree_util.tree_leaves_with_path({"clip": tower})
    names = ("layers", "embed", "mlp")
    return {sharding.path_name(path): names[-x.ndim :] if x.ndim else () for path, x in leaves}


@pytest.mark.parametrize("blocks", [SCANNED, UNROLLED], ids=["scanned", "unrolled"])
def test_updates_decay_from_block_to_block(blocks):
    """BEiT: 1 for the head, then a factor for each block, and one more for the embeddings."""
    params = {"clip": {"text": blocks, "logit_scale": jnp.ones(())}}
    axes = layer_axes({"text": blocks, "logit_scale": jnp.ones(())})
    tx, _ = optim.make(options(name="sgd", layer_decay=0.5), params, 100, axes)
    updates, _ = tx.update(params, tx.init(params), params)
    text = updates["clip"]["text"]
    assert float(updates["clip"]["logit_scale"]) == float(text["head"]["kernel"][0, 0]) == pytest.approx(-0.1)
    if blocks is SCANNED:
        by_block = text["transformer"]["blocks"]["mlp"]["kernel"][:, 0, 0]
    else:
        by_block = [text["transformer"][f"block_{i}"]["mlp"]["kernel"][0, 0] for i in range(3)]
    np.testing.assert_allclose(by_block, [-0.1 / 8, -0.1 / 4, -0.1 / 2], rtol=1e-6)
    np.testing.assert_allclose(text["positions"], -0.1 / 16, rtol=1e-6)


@pytest.mark.parametrize("blocks", [SCANNED, UNROLLED], ids=["scanned", "unrolled"])
def test_adapters_decay_and_are_scaled_as_their_kernels(blocks):
    names = ("layers", "embed", "mlp") if blocks is SCANNED else ("embed", "mlp")
    boxed = jax.tree_util.tree_map_with_path(
        lambda path, x: nn.LogicallyPartitioned(x, names if "transformer" in sharding.path_name(path) else ("embed", "mlp")),
        {"clip": {"text": blocks}},
    )
    boxed = lora.add_adapters(boxed, (("mlp", 1, 1.0),), (), jax.random.key(0))
    params, axes = sharding.unbox(boxed), sharding.logical_axes(boxed)
    changes = options(name="sgd", layer_decay=0.5, lr_scale=(("clip/text", 0.1),))
    tx, _ = optim.make(changes, params, 100, axes)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    adapter = updates["clip"]["lora"]["text"]["transformer"]
    values = [adapter[f"block_{i}"]["mlp"]["kernel"]["b"].min() for i in range(3)] if blocks is UNROLLED else None
    values = values or adapter["blocks"]["mlp"]["kernel"]["b"].min((1, 2, 3))
    np.testing.assert_allclose(values, [-0.01 / 8, -0.01 / 4, -0.01 / 2], rtol=1e-6)


# Exponents of the decay in an encoder of two blocks whose output a decoder of three reads, top down.
EXPONENTS = {
    "head/kernel": 0, "norm/scale": 0, "second_norm/scale": 0,
    "transformer/block_2": 1, "transformer/block_1": 2, "transformer/block_0": 3,
    "codes/tokens": 4, "codes/positions": 4, "code_norm/scale": 4, "start/tokens": 4, "start/positions": 4,
    "encoder_norm/scale": 3, "encoder/block_1": 4, "encoder/block_0": 5,
    "condition/tokens": 6, "condition/positions": 6, "condition_norm/scale": 6,
}  # fmt: skip


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_the_blocks_of_an_encoder_precede_those_of_its_decoder(scan):
    """Of a model of dalle-mini's layout, against exponents written by hand."""
    config = CodeTransformerOptions(width=8, depth=3, heads=2, encoder_depth=2, embedding_norm=True, head_norm=True)
    module = build(config, ClassCondition(4), 6, (2, 2), TransformerCompute(scan=scan))
    inputs = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 4), jnp.int32)
    boxed = {"generator": module.init(jax.random.key(0), *inputs)["params"]}
    params = sharding.unbox(boxed)
    scales = optim.layer_scales(0.5, params, sharding.logical_axes(boxed))
    checked = set()
    for name, shape in ((name, x.shape) for name, x in optim.by_path(params).items()):
        factors = np.broadcast_to(scales[name], shape)
        if "/blocks/" in name:
            stack, path = name.split("/")[1], name.split("/blocks/")[1]
            parts = {f"{stack}/block_{i}/{path}": factors[i] for i in range(shape[0])}
        else:
            parts = {name.removeprefix("generator/"): factors}
        for part, values in parts.items():
            key = next(key for key in EXPONENTS if part.replace("bias", "scale").startswith(key))
            np.testing.assert_array_equal(values, 0.5 ** EXPONENTS[key])
            checked.add(key)
    assert checked == set(EXPONENTS)


def test_layer_decay_without_a_transformer_is_an_error():
    with pytest.raises(ConfigError, match="layer_decay decays the blocks of transformers, and this model has none"):
        optim.make(options(layer_decay=0.5), PARAMS, 100, AXES)
