"""The two-player step against the textbook's two passes; players kept apart; the same on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import vqgan_jax
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.compute import Compute
from train_jax.errors import ConfigError
from train_jax.optim import Optimizer
from train_jax.step import make_train_step, plan_state
from vqgan_jax import averaging, discriminator, model, quantize, task
from vqgan_jax import loss as loss_lib

SIZE = 16
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)}


DEEP = {"model.multipliers": (1, 2), "model.attention": (8,), "model.middle_attention": True}  # slow to compile
ALONE = {"loss.adversarial": "none"}


def config(**changes) -> ConfigDict:
    c = ConfigDict({"task": "vqgan_jax.task", "steps": 10, "data": {"source": "shapes/32", "batch_size": 8}})
    c.model = {"channels": 8, "multipliers": (1,), "blocks": 1, "resolution": SIZE, "attention": (), "groups": 4}
    c.model.update({"z_channels": 8, "middle_attention": False})
    c.model.quantizer = {"size": 16, "dim": 4}
    c.discriminator = {"channels": 8, "layers": 2}
    c.loss, c.perceptual, c.augment, c.codebook, c.ema, c.optim = {"weight": 0.5}, {}, {}, {}, {}, {}
    c.update_from_flattened_dict(changes)
    return config_lib.resolve(c)


DRAWN: dict[str, tuple] = {}


def started(c: ConfigDict):
    """The task, its parameters and extra state, which are drawn once for all configs that have the same."""
    made = task.make(c, None)
    key = repr((c.model, c.discriminator, c.loss.adversarial, c.loss.lecam > 0, bool(c.ema.decay)))
    if key not in DRAWN:
        DRAWN[key] = sharding.unbox(jax.jit(made.init)(jax.random.key(1), BATCH))
    return made, *jax.tree.map(lambda x: x, DRAWN[key])


def gradient_function(made):
    """Compiled once: `(params, extra, step) -> total, metrics, statistics, gradients`."""

    @jax.jit
    def function(params, extra, step):
        batch = jax.tree.map(jnp.asarray, BATCH)
        value = jax.value_and_grad(made.loss, has_aux=True)
        (total, (metrics, statistics)), grads = value(params, extra, batch, jax.random.key(2), step)
        return total, metrics, statistics, grads

    return function


def gradients(made, params, extra):
    return gradient_function(made)(params, extra, 5)


def textbook(c: ConfigDict, params, extra, kind: str):
    """Both players' gradients by taming's recipe: one pass to balance, one for the generator, one for the discriminator."""
    module, critic = model.build(c.model), discriminator.build(c.discriminator, Compute())
    x = jnp.asarray(BATCH["image"] / 127.5 - 1, jnp.float32)

    def logits(d, pictures):
        return critic.apply({"params": d, **extra["discriminator"]}, pictures, True, mutable=["batch_stats"])[0]

    def forward(g):
        h, quantized = module.apply({"params": g}, x, False, 1.0, method="features")
        return module.apply({"params": g}, h, method="pixels"), quantized

    def nll_loss(g):
        return jnp.mean(jnp.abs(forward(g)[0] - x))

    def g_loss(g):
        return loss_lib.generator_loss(kind, logits(params["discriminator"], forward(g)[0]))

    def last_layer_norm(grads):
        return jnp.linalg.norm(grads["decoder"]["conv_out"]["kernel"].ravel())

    g = params["generator"]
    weight = jnp.clip(last_layer_norm(jax.grad(nll_loss)(g)) / (last_layer_norm(jax.grad(g_loss)(g)) + 1e-4), 0, 1e4)
    generator_grads = jax.grad(lambda g: nll_loss(g) + c.loss.weight * weight * g_loss(g) + forward(g)[1].loss)(g)
    fake = forward(g)[0]
    discriminator_grads = jax.grad(lambda d: loss_lib.discriminator_loss(kind, logits(d, x), logits(d, fake)))(
        params["discriminator"]
    )
    return {"generator": generator_grads, "discriminator": discriminator_grads}, weight


def assert_close(found, wanted, tolerance=1e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "kind, norm, size", [("hinge", "group", DEEP), ("vanilla", "batch", {}), ("non_saturating", "group", {})]
)
def test_one_backward_gives_the_gradients_of_the_textbook_s_three(kind, norm, size):
    c = config(**{"loss.adversarial": kind, "discriminator.norm": norm} | size)
    made, params, extra = started(c)
    _, metrics, _, found = gradients(made, params, extra)
    wanted, weight = jax.jit(lambda p, e: textbook(c, p, e, kind))(params, extra)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    for player in wanted:
        assert_close(found[player], wanted[player])


def distance(a, b) -> float:
    """Relative, of two trees."""
    return float(optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b))


def cosine(a, b) -> float:
    return float(optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b)))


def test_both_players_get_in_bfloat16_the_gradients_of_float32(monkeypatch):
    """With the codes of float32: a latent between two codes may fall to the other, and the players see other pictures."""
    short = {"compute.dtype": "bfloat16"}
    options = {"loss.r1": 0.1, "loss.lecam": 0.1} | DEEP
    made, params, extra = started(config(**options))
    # Weights far from their small beginnings, at which gradients are differences of nearly equal sums.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)
    params["generator"]["quantizer"]["codebook"] = jnp.asarray(rng.standard_normal((16, 4), np.float32))
    total, metrics, statistics, grads = gradients(made, params, extra)
    monkeypatch.setattr(quantize, "nearest_codes", lambda z, codebook: jnp.asarray(statistics["codes"]))
    value, found, _, short_grads = gradients(task.make(config(**options, **short), None), params, extra)
    assert {x.dtype for x in jax.tree.leaves((short_grads, found, value))} == {np.dtype("float32")}
    # Each layer rounds four times, weights, inputs, outputs and the gradient coming back: twice the error of weights alone.
    *_, rounded = gradients(made, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params), extra)
    for player in ("discriminator", "generator"):
        assert distance(short_grads[player], grads[player]) < 2 * distance(rounded[player], grads[player]) < 0.2
    np.testing.assert_allclose(value, total, rtol=0.02)
    np.testing.assert_allclose(found["adaptive_weight"], metrics["adaptive_weight"], rtol=0.1)


@pytest.mark.parametrize("kind", quantize.TYPES)
def test_every_quantiser_works_on_a_bfloat16_encoder(kind):
    """Latents are compared in float32; codes, losses and gradients are those of a float32 model but for rounding."""
    small = {"multipliers": (1,), "attention": (), "channels": 4, "groups": 2, "blocks": 1, "z_channels": 4}
    quantizer = {"type": kind, "size": 6, "dim": 3, "levels": (3, 3), "bits": 3}
    options = config(**{f"model.{name}": x for name, x in small.items()})
    options.model.quantizer.update(quantizer)
    plain = model.build(options.model)
    short = model.build(options.model, Compute(dtype="bfloat16"))
    x = jnp.asarray(BATCH["image"][:2] / 127.5 - 1, jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = sharding.unbox(jax.jit(plain.init)(keys, x))
    if "codebook" in variables:  # far from one another, so that few codes are a matter of rounding
        points = jax.random.normal(jax.random.key(2), (6, 3))
        variables["codebook"]["quantizer"] |= {"points": points, "total": points}
    elif "codebook" in variables["params"].get("quantizer", {}):
        variables["params"]["quantizer"]["codebook"] = jax.random.normal(jax.random.key(2), (6, 3))

    def loss(params, module):
        inputs = ({**variables, "params": params}, x, False, 1.0)
        mutable = [name for name in variables if name != "params"]
        (h, found), _ = module.apply(*inputs, method="features", rngs={"dropout": keys["dropout"]}, mutable=mutable)
        pictures = module.apply(variables | {"params": params}, h, method="pixels")
        return jnp.mean((pictures - x) ** 2) + found.loss, found

    def both(params):
        return [jax.value_and_grad(loss, has_aux=True)(params, module) for module in (plain, short)]

    ((exact, wanted), grads), ((value, found), short_grads) = jax.jit(both)(variables["params"])
    dtypes = {x.dtype for x in jax.tree.leaves((found.vectors, found.latents, found.loss, short_grads))}
    assert dtypes == {np.dtype("float32")}
    assert np.mean(np.asarray(found.codes) == wanted.codes) > 0.97
    np.testing.assert_allclose(value, exact, rtol=0.03)
    # A code that flips takes its share of the gradient away, and another one in: 2 x 3 % at most, and rounding.
    assert cosine(short_grads, grads) > 0.94


def test_eight_pictures_are_learnt_by_heart_in_bfloat16_as_in_float32(learn):
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [np.sin(rng.uniform(2, 7, 3) * row[..., None] + rng.uniform(2, 7, 3) * column[..., None]) for _ in range(8)]
    batch = {"image": np.round(127.5 + 120 * np.stack(waves)).astype(np.uint8)}
    curves = {}
    for dtype, updates in (("float32", 400), ("bfloat16", 12)):
        options = {"compute.dtype": dtype, "model.quantizer.size": 64, "model.attention": (), "loss.adversarial": "none"}
        options |= {"codebook.start": "kmeans", "codebook.revive": 10, "steps": 400, "optim.lr": 5e-3}
        c = config(**options)
        state, history = learn(task.make(c, None), c, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["psnr"] > 25, "dB"
            variables = {"params": state.params["generator"], **state.extra["generator"]}
            found = vqgan_jax.Vqgan.assemble(c.model, variables, "by heart").reconstruct(batch["image"])
            assert -10 * np.log10(np.mean((found - batch["image"] / 255) ** 2)) > 25
    # The first loss is off by rounding alone; then a latent between two codes may fall to the other side.
    np.testing.assert_allclose(curves["bfloat16"][0], curves["float32"][0], rtol=0.02)
    np.testing.assert_allclose(curves["bfloat16"], curves["float32"][:12], rtol=0.1)


def test_the_value_is_the_sum_of_the_reported_losses():
    made, params, extra = started(config())
    total, metrics, _, _ = gradients(made, params, extra)
    wanted = metrics["loss_pixels"] + metrics["loss_codebook"] + metrics["loss_discriminator"]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    shares = [value for name, value in metrics.items() if name.startswith("gradient_share/")]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def plain():
    """Each player's gradient with the losses as they are."""
    return gradients(*started(config()))[3]


def test_the_generator_s_losses_do_not_touch_the_discriminator(plain):
    louder = gradients(*started(config(**{"loss.pixel_weight": 3.0, "loss.weight": 0.1})))[3]
    assert_close(louder["discriminator"], plain["discriminator"], 1e-6)
    assert not np.allclose(
        louder["generator"]["decoder"]["conv_out"]["kernel"], plain["generator"]["decoder"]["conv_out"]["kernel"]
    )


def test_the_discriminator_s_losses_do_not_touch_the_generator(plain):
    strict = gradients(*started(config(**{"loss.lecam": 0.5, "loss.r1": 2.0})))[3]
    assert_close(strict["generator"], plain["generator"], 1e-6)
    assert not np.allclose(strict["discriminator"]["conv0"]["kernel"], plain["discriminator"]["conv0"]["kernel"])


@pytest.mark.parametrize("side", [32, 64])
def test_r1_does_not_depend_on_the_size_of_pictures(side):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, side, side, 3)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8, 3)), jnp.float32)

    def linear(x):
        """Logits of patches that do not overlap: each has the gradient `weights` in its patch."""
        return jnp.einsum("bhiwjc,ijc->bhw", x.reshape(3, side // 8, 8, side // 8, 8, 3), weights)

    np.testing.assert_allclose(loss_lib.gradient_penalty(linear, x), 0.5 * jnp.sum(weights**2), rtol=1e-5)
    one = loss_lib.gradient_penalty(
        lambda x: jnp.sum(x**2, axis=(1, 2, 3)), x
    )  # a logit a picture: R1 as it is published
    np.testing.assert_allclose(one, 0.5 * np.mean(np.sum((2 * x) ** 2, axis=(1, 2, 3))), rtol=1e-5)


def test_r1_of_a_discriminator_is_alike_at_two_sizes():
    module = discriminator.build(config(**{"discriminator.channels": 4}).discriminator, Compute())
    penalties = []
    for side in (64, 128):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 3)), jnp.float32)
        variables = jax.jit(module.init)(jax.random.key(0), x)
        penalty = jax.jit(lambda v, x: loss_lib.gradient_penalty(lambda y: module.apply(v, y), x))
        penalties.append(float(penalty(variables, x)))
    assert 0.7 < penalties[0] / penalties[1] < 1.4


def test_a_generator_that_does_not_listen_trains_as_one_without_a_discriminator():
    deaf = gradients(*started(config(**{"loss.weight": 0.0})))[3]
    alone = gradients(*started(config(**{"loss.adversarial": "none"})))[3]
    assert_close(deaf["generator"], alone["generator"], 1e-6)


def convolutions(jaxpr) -> int:
    """First convolutions of the encoder: those from three channels to eight."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            count += kernel == (3, 3, 3, 24)
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                count += convolutions(inner) if hasattr(inner, "eqns") else 0
    return count


def test_the_step_holds_one_generator_forward():
    c = config(**{"model.channels": 24, "model.multipliers": (2, 2)})  # no other layer has a kernel like the first
    made, params, extra = started(c)

    def value(params):
        return made.loss(params, extra, jax.tree.map(jnp.asarray, BATCH), jax.random.key(2), jnp.asarray(5))[0]

    assert convolutions(jax.make_jaxpr(jax.grad(value))(params).jaxpr) == 1


def test_the_discriminator_starts_alone_and_its_weight_rises():
    c = config(**{"loss.disc_start": 2, "loss.disc_warmup": 2, "loss.disc_ramp": 4, "loss.adaptive": False})
    made, params, extra = started(c)
    shares, learns, function = [], [], gradient_function(made)
    for step in range(10):
        _, metrics, _, grads = function(params, extra, step)
        shares.append(float(metrics["gradient_share/adversarial"]))
        learns.append(bool(optax.tree.norm(grads["discriminator"]) > 0))
    assert learns == [step >= 2 for step in range(10)]
    assert shares[:4] == [0] * 4 and np.all(np.diff(shares[3:8]) > 0)
    np.testing.assert_allclose(shares[7:], shares[7], rtol=1e-5)
    assert [round(float(loss_lib.ramp(s, 2 + 2, 4)), 4) for s in range(3, 9)] == [0, 0.25, 0.5, 0.75, 1, 1]


def optimizer(tx: optax.GradientTransformation, lr: float):
    """`plan_state`'s make_optimizer: one rule for both players."""
    return lambda params, axes: Optimizer(tx, dict.fromkeys(params, lambda _: lr))


def run_steps(c: ConfigDict, devices: int = 1, *, fsdp=1, batches=(BATCH,) * 3, accumulate=1, lr=0.05):
    """`(states, metrics)`: the state before and after each update, and the metrics of each."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": 1}, jax.devices()[:devices])
    made = task.make(c, None)
    with jax.set_mesh(mesh):
        plan = plan_state(made, optimizer(optax.sgd(lr), lr), mesh, BATCH, seed=0, ema_players=("generator",))
        options = {"seed": 0, "ema_decay": 0.9, "accumulate": accumulate}
        step = make_train_step(made, plan.optimizer, mesh, plan.abstract, **options)
        state = plan.create()
        states, seen = [jax.device_get(state)], []
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            states.append(jax.device_get(state))
            seen.append(jax.device_get(metrics))
    return states, seen


@pytest.mark.parametrize(
    "changes",
    [
        {"discriminator.norm": "batch", "loss.lecam": 0.1, "loss.r1": 0.1},
        {"model.quantizer.type": "ema", "codebook.revive": 2, "codebook.start": "kmeans"},
        {"model.quantizer.unit": True, "codebook.revive": 2, "codebook.start": "kmeans"},
    ],
    ids=["batch-norm", "ema", "unit"],
)
def test_eight_devices_compute_what_one_does(changes):
    c = config(**changes)
    (*_, one), seen = run_steps(c)
    (*_, eight), found = run_steps(c, 8, fsdp=4)  # the batch is split over both axes, parameters over one
    for a, b in zip(seen, found, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert_close(eight.params, one.params, 1e-5)
    assert_close(eight.extra, one.extra, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.quantizer.type": "ema", "codebook.revive": 2, "loss.lecam": 0.1},
        {"codebook.start": "kmeans"},
    ],
    ids=["ema", "kmeans"],
)
def test_micro_batches_change_the_codebook_once_and_by_the_whole_batch(changes):
    c = config(**changes)
    (start, whole), (seen,) = run_steps(c, batches=[BATCH])
    (_, parts), (found,) = run_steps(c, batches=[BATCH], accumulate=4)
    books = [
        state.extra["generator"].get("codebook") or state.params["generator"]["quantizer"] for state in (whole, parts)
    ]
    for wanted, got in (books, (whole.extra, parts.extra)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6), wanted, got)
    for name in ("usage", "perplexity"):
        np.testing.assert_allclose(found[name], seen[name], rtol=1e-6)
    if "codebook.start" in changes:
        assert np.abs(books[0]["codebook"] - start.params["generator"]["quantizer"]["codebook"]).max() > 0.01


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_a_run_from_its_own_weights_keeps_its_codebook(kind, tmp_path):
    """A training that began with k-means, and others that go on from it, with and without asking for k-means again."""
    first = config(**{"model.quantizer.type": kind, "codebook.start": "kmeans"}, **ALONE)
    (*_, trained), _ = run_steps(first, batches=[BATCH] * 2)
    variables = {"params": trained.params["generator"], **trained.extra["generator"]}
    vqgan_jax.save(vqgan_jax.Vqgan.assemble(first.model, variables, "trained"), tmp_path / "first.safetensors")

    def going_on(start: str):
        c = {"task": "vqgan_jax.task", "steps": 10, "data": {"source": "shapes/32", "batch_size": 8}}
        c |= {"pretrained": str(tmp_path / "first.safetensors"), "loss": {"adversarial": "none"}}
        full = config_lib.resolve(ConfigDict(c | {"codebook": {"start": start}}))
        return run_steps(full, batches=[BATCH], lr=0.0)[0][-1]

    found, wanted = going_on("kmeans"), going_on("random")
    jax.tree.map(np.testing.assert_array_equal, found.extra, wanted.extra)
    if kind == "nearest":
        jax.tree.map(np.testing.assert_array_equal, found.params["generator"], trained.params["generator"])


EMA = {"model.quantizer.type": "ema", "model.quantizer.size": 256, "ema.decay": 0.9, "ema.players": ("generator",)}


def test_an_ema_codebook_is_averaged_with_its_encoder():
    states, _ = run_steps(config(**EMA, **{"codebook.revive": 1}, **ALONE))
    average = states[0].extra["averaged"].astype(np.float64)
    for updates, state in enumerate(states[1:]):
        book = state.extra["generator"]["codebook"]["quantizer"]
        points, revived = book["points"], np.all(book["total"] == book["points"], axis=1)  # so a revived code begins
        assert revived.any() == (updates > 0) and not revived.all()
        decay = min(0.9, (1 + updates) / (10 + updates))
        average = np.where(revived[:, None], points, average + (1 - decay) * (points - average))
        np.testing.assert_allclose(state.extra["averaged"], average, atol=1e-6)
    assert np.abs(average - points).max() > 1e-3, "an average that lags behind"
    variables = averaging.variables({"generator": state.ema["generator"]}, state.extra)
    np.testing.assert_array_equal(variables["codebook"]["quantizer"]["points"], state.extra["averaged"])


@pytest.mark.parametrize("off", [{"ema.decay": 0.0}, {"ema.players": ("discriminator",)}])
def test_without_an_average_of_the_generator_that_of_its_ema_codebook_is_the_codebook(off):
    """So that the average can be switched on and off where a run goes on: its checkpoint has the same arrays."""
    (*_, state), _ = run_steps(config(**EMA | off, **ALONE))
    np.testing.assert_array_equal(state.extra["averaged"], state.extra["generator"]["codebook"]["quantizer"]["points"])


def test_the_average_of_an_ema_codebook_does_not_count_skipped_updates():
    c = config(**EMA, **ALONE)
    bad = {name: np.full_like(x, np.nan, np.float32) for name, x in BATCH.items()}
    (*_, good), _ = run_steps(c, batches=[BATCH] * 2, lr=0.0)
    (*_, skipping), _ = run_steps(c, batches=[bad, bad, BATCH, BATCH], lr=0.0)
    assert skipping.counters["skipped"] == 2
    jax.tree.map(np.testing.assert_array_equal, good.extra, skipping.extra)


def test_a_revived_code_forgets_its_moments():
    c = config(**{"codebook.revive": 1, "model.quantizer.size": 256})
    made = task.make(c, None)

    def telling(*state):
        params, extra, moved, metrics = made.revise(*state)
        return params, extra, moved, metrics | {"moved": moved["generator/quantizer/codebook"]}

    task_with_mask = dataclasses.replace(made, revise=telling)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        adam = optimizer(optax.adam(1e-2), 1e-2)
        plan = plan_state(task_with_mask, adam, mesh, BATCH, seed=0, ema_players=("generator",))
        step = make_train_step(task_with_mask, plan.optimizer, mesh, plan.abstract, seed=0, ema_decay=0.9)
        state = plan.create()
        for _ in range(3):
            state, metrics = step(state, BATCH)
    last = np.asarray(state.extra["usage"]["last"])
    used = np.asarray(state.extra["usage"]["share"]) > 0
    book = state.params["generator"]["quantizer"]["codebook"]
    moments = state.opt_state[0].mu["generator"]["quantizer"]["codebook"]
    moved = np.asarray(metrics["moved"])
    assert moved.any() and not moved.all() and used.any() and (last[moved] == 2).all()
    assert not np.any(np.asarray(moments)[moved])
    assert np.any(np.asarray(moments)[~moved])
    np.testing.assert_array_equal(state.ema["generator"]["quantizer"]["codebook"][moved], book[moved])


def test_an_update_with_broken_numbers_changes_neither_player():
    c = config()
    made = task.make(c, None)

    def broken(params, extra, batch, rng, step):
        value, (metrics, extra) = made.loss(params, extra, batch, rng, step)
        return value + jnp.where(step == 1, jnp.nan, 0.0), (metrics, extra)

    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        poisoned = dataclasses.replace(made, loss=broken)
        plan = plan_state(poisoned, optimizer(optax.adam(1e-2), 1e-2), mesh, BATCH, seed=0)
        step = make_train_step(poisoned, plan.optimizer, mesh, plan.abstract, seed=0)
        state, _ = step(plan.create(), BATCH)
        before = jax.device_get(state)
        after, metrics = step(state, BATCH)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(after.params))
    jax.tree.map(np.testing.assert_array_equal, before.extra, jax.device_get(after.extra))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook.start": "zeros"}, "codebook.start = 'zeros'; it must be one of random, kmeans"),
        ({"codebook.revive": -1}, "codebook.revive = -1 must be 0 or more"),
        (
            {"model.quantizer.type": "fsq", "codebook.revive": 5},
            "revive = 5; it must be 0 for fsq, which has no codebook",
        ),
        ({"model.quantizer.type": "gumbel", "codebook.start": "kmeans"}, "it must be 'random' for gumbel"),
        ({"loss.adversarial": "wgan"}, "hinge, vanilla, non_saturating, none"),
        ({"loss.pixels": "l3"}, "one of l1, l2"),
        ({"loss.disc_ramp": 0}, "disc_ramp = 0 must be at least 1"),
        ({"loss.r1": -1.0}, "r1 = -1.0 must be 0 or more"),
        ({"perceptual.type": "lpips"}, "needs config.perceptual.path: weights of LPIPS"),
        ({"perceptual.type": "vgg"}, "one of none, lpips, clip"),
        ({"perceptual.type": "clip", "perceptual.path": "/nowhere"}, "no such file or folder"),
        ({"model.groups": 3}, "groups = 3 does not divide the 8 channels of level 0"),
        ({"model.resolution": 17, "model.multipliers": (1, 2)}, "resolution = 17 is not divisible by f = 2"),
        ({"model.attention": (5,)}, "attention has 5; the maps are"),
        ({"compute.dtype": "float16"}, "one of float32, bfloat16"),
        ({"discriminator.norm": "layer"}, "one of group, batch"),
        ({"augment.scale": (0.0, 1.0)}, "two shares of the area"),
    ],
)
def test_wrong_options_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        task.make(config(**changes), None)


def test_the_log_warns_of_collapse_and_of_a_discriminator_that_wins():
    made = task.make(config(), None)
    fine = {"usage": 0.5, "loss_discriminator": 0.4}
    assert made.warnings(fine, 500) == []
    (words,) = made.warnings(fine | {"usage": 0.01}, 500)
    assert "the codebook has collapsed: 1.0 % of 16 codes" in words
    assert made.warnings(fine | {"usage": 0.01}, 100) == []
    (words,) = made.warnings(fine | {"loss_discriminator": 0.001}, 500)
    assert "the discriminator wins outright" in words
