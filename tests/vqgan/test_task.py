"""The two-player step against the textbook's two passes; players kept apart; the same on one device and on eight."""

import dataclasses
import functools

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
from train_jax.data.images import normalize
from train_jax.errors import ConfigError
from train_jax.optim import Optimizer
from train_jax.step import make_train_step, plan_state
from vqgan_jax import averaging, codebook, discriminator, model, quantize, task
from vqgan_jax import loss as loss_lib
from vqgan_jax.gan import TwoPlayerLoss

SIZE = 16
BATCH = {"image": np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)}


DEEP = {"model.multipliers": (1, 2), "model.attention": (8,), "model.middle_attention": True}  # slow to compile
ALONE = {"loss.adversarial": "none"}
LATE = 20  # an update at which the adversarial weight has risen


def config(**changes) -> ConfigDict:
    c = ConfigDict({"task": "vqgan_jax.task", "steps": 10, "data": {"source": "shapes/32", "batch_size": 8}})
    c.model = {"channels": 8, "multipliers": (1,), "blocks": 1, "resolution": SIZE, "attention": (), "groups": 4}
    c.model.update({"z_channels": 8, "middle_attention": False})
    c.model.quantizer = {"size": 16, "dim": 4}
    c.discriminator = {"channels": 8, "layers": 2}
    c.loss, c.perceptual, c.augment, c.codebook, c.ema, c.optim = {"weight": 0.5}, {}, {}, {}, {}, {}
    c.compute = {}
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


def gradients(loss, params, extra, step=LATE):
    """Total, metrics, statistics and gradients of a task's loss on `BATCH`."""
    batch = jax.tree.map(jnp.asarray, BATCH)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (total, (metrics, statistics)), grads = value_and_grad(params, extra, batch, jax.random.key(2), step)
    return total, metrics, statistics, grads


def of_config(c: ConfigDict):
    made, params, extra = started(c)
    return jax.jit(functools.partial(gradients, made.loss))(params, extra)


@pytest.fixture(scope="module")
def weighted():
    """`(step, **weights of losses) -> gradients`, all by one program; and the config, parameters and extra state."""
    c = config(**{"loss.disc_start": 2, "loss.disc_warmup": 2, "loss.disc_ramp": 4})
    _, params, extra = started(c)

    @jax.jit
    def function(params, extra, step, weights):
        traced = ConfigDict(c.to_dict(), type_safe=False)
        traced.loss.update(weights)
        modules = model.build(c.model), discriminator.build(c.discriminator, Compute())
        two_player_loss = TwoPlayerLoss(*modules, None, traced, keeps_latents=False)

        def loss(params, extra, batch, rng, step):
            return two_player_loss(params, extra, normalize(batch["image"], task.HALF, task.HALF), rng, step)

        return gradients(loss, params, extra, step)

    def call(step: int = LATE, *, weight: float = 0.5, pixel_weight: float = 1.0):
        return function(params, extra, step, {"weight": weight, "pixel_weight": pixel_weight})

    return call, (c, params, extra)


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


def check_textbook(c: ConfigDict, params, extra, kind: str, metrics, grads) -> None:
    wanted, weight = jax.jit(lambda p, e: textbook(c, p, e, kind))(params, extra)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    for player in wanted:
        assert_close(grads[player], wanted[player])


def test_one_backward_gives_the_gradients_of_the_textbook_s_three(weighted):
    call, start = weighted
    _, metrics, _, grads = call()
    check_textbook(*start, "hinge", metrics, grads)


def test_one_backward_gives_the_gradients_of_the_textbook_s_three_with_batch_norm():
    c = config(**{"loss.adversarial": "vanilla", "discriminator.norm": "batch"})
    _, metrics, _, grads = of_config(c)
    _, params, extra = started(c)
    check_textbook(c, params, extra, "vanilla", metrics, grads)


def test_adversarial_losses_are_those_of_the_papers():
    """Hinge (1705.02894), cross-entropy of both players (1406.2661), and the generator's -mean of both in taming."""
    rng = np.random.default_rng(0)
    real, fake = (rng.normal(0, 2, (3, 4, 4)).astype(np.float32) for _ in range(2))

    def cross_entropy(logits, label):
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return -np.mean(np.log(p if label else 1 - p))

    hinge = (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()) / 2
    entropy = (cross_entropy(real, 1) + cross_entropy(fake, 0)) / 2
    generator = {"hinge": -fake.mean(), "vanilla": -fake.mean(), "non_saturating": cross_entropy(fake, 1)}
    assert generator.keys() == set(loss_lib.ADVERSARIAL)
    for kind, wanted in generator.items():
        np.testing.assert_allclose(loss_lib.generator_loss(kind, jnp.asarray(fake)), wanted, rtol=1e-5)
        against = loss_lib.discriminator_loss(kind, jnp.asarray(real), jnp.asarray(fake))
        np.testing.assert_allclose(against, hinge if kind == "hinge" else entropy, rtol=1e-5)


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
    module, x = model.build(config(**options).model), jnp.asarray(BATCH["image"] / 127.5 - 1, jnp.float32)
    codes = jax.jit(lambda p: module.apply({"params": p}, x, method="encode"))(params["generator"])
    monkeypatch.setattr(quantize, "nearest_codes", lambda z, codebook: codes)
    exact = jax.jit(functools.partial(gradients, made.loss))
    total, metrics, _, grads = exact(params, extra)
    made = task.make(config(**options, **short), None)
    value, found, _, short_grads = jax.jit(functools.partial(gradients, made.loss))(params, extra)
    assert {x.dtype for x in jax.tree.leaves((short_grads, found, value))} == {np.dtype("float32")}
    # Each layer rounds four times, weights, inputs, outputs and the gradient coming back: twice the error of weights alone.
    *_, rounded = exact(jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params), extra)
    for player in ("discriminator", "generator"):
        assert distance(short_grads[player], grads[player]) < 2 * distance(rounded[player], grads[player]) < 0.2
    np.testing.assert_allclose(value, total, rtol=0.02)
    np.testing.assert_allclose(found["adaptive_weight"], metrics["adaptive_weight"], rtol=0.1)


@pytest.mark.parametrize("kind", quantize.QUANTIZERS)
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


def test_the_value_is_the_sum_of_the_reported_losses(weighted):
    total, metrics, _, _ = weighted[0]()
    wanted = metrics["loss_pixels"] + metrics["loss_codebook"] + metrics["loss_discriminator"]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    shares = [value for name, value in metrics.items() if name.startswith("gradient_share/")]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-5)


def test_the_generator_s_losses_do_not_touch_the_discriminator(weighted):
    call, _ = weighted
    plain, louder = call()[3], call(weight=0.1, pixel_weight=3.0)[3]
    assert_close(louder["discriminator"], plain["discriminator"], 1e-6)
    assert not np.allclose(
        louder["generator"]["decoder"]["conv_out"]["kernel"], plain["generator"]["decoder"]["conv_out"]["kernel"]
    )


def test_the_discriminator_s_losses_do_not_touch_the_generator(weighted):
    plain = weighted[0]()[3]
    strict = of_config(config(**{"loss.lecam": 0.5, "loss.r1": 2.0}))[3]
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


def test_a_generator_that_does_not_listen_trains_as_one_without_a_discriminator(weighted):
    deaf, alone = weighted[0](weight=0.0)[3], of_config(config(**ALONE))[3]
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


def test_the_discriminator_starts_alone_and_its_weight_rises(weighted):
    shares, learns = [], []
    for step in range(10):
        _, metrics, _, grads = weighted[0](step)
        shares.append(float(metrics["gradient_share/adversarial"]))
        learns.append(bool(optax.tree.norm(grads["discriminator"]) > 0))
    assert learns == [step >= 2 for step in range(10)]
    assert shares[:4] == [0] * 4 and np.all(np.diff(shares[3:8]) > 0)
    np.testing.assert_allclose(shares[7:], shares[7], rtol=1e-5)
    assert [round(float(loss_lib.ramp(s, 2 + 2, 4)), 4) for s in range(3, 9)] == [0, 0.25, 0.5, 0.75, 1, 1]


def optimizer(tx: optax.GradientTransformation, lr: float):
    """`plan_state`'s make_optimizer: one rule for both players."""
    return lambda params, axes: Optimizer(tx, dict.fromkeys(params, lambda _: lr))


@functools.cache
def program(changes: tuple, devices: int, fsdp: int, accumulate: int, lr: float):
    """Mesh, compiled step, first state (NumPy's) and its shardings of a config's changes; shared by the tests."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": 1}, jax.devices()[:devices])
    made = task.make(config(**dict(changes)), None)
    with jax.set_mesh(mesh):
        plan = plan_state(made, optimizer(optax.sgd(lr), lr), mesh, BATCH, seed=0, ema_players=("generator",))
        options = {"seed": 0, "ema_decay": 0.9, "accumulate": accumulate}
        step = make_train_step(made, plan.optimizer, mesh, plan.abstract, **options)
        return mesh, step, jax.device_get(plan.create()), jax.tree.map(lambda x: x.sharding, plan.abstract)


def run_steps(changes: dict, devices: int = 1, *, fsdp=1, batches=(BATCH,) * 3, accumulate=1, lr=0.05):
    """`(states, metrics)`: the state before and after each update, and the metrics of each."""
    mesh, step, start, shardings = program(tuple(changes.items()), devices, fsdp, accumulate, lr)
    states, history = [start], []
    with jax.set_mesh(mesh):
        state = jax.device_put(start, shardings, may_alias=False)
        for batch in batches:
            state, metrics = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
            states.append(jax.device_get(state))
            history.append(jax.device_get(metrics))
    return states, history


EVERYTHING = {"discriminator.norm": "batch", "loss.lecam": 0.1, "loss.r1": 0.1}
EVERYTHING |= {"model.quantizer.type": "ema", "codebook.revive": 2, "codebook.start": "kmeans"}
UNIT = {"model.quantizer.unit": True, "codebook.revive": 2, "codebook.start": "kmeans"} | ALONE


@pytest.mark.parametrize("changes", [EVERYTHING, UNIT], ids=["ema", "unit"])
def test_eight_devices_compute_what_one_does(changes):
    (*_, one), on_one = run_steps(changes)
    (*_, eight), on_eight = run_steps(changes, 8, fsdp=4)  # the batch is split over both axes, parameters over one
    for a, b in zip(on_one, on_eight, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert_close(eight.params, one.params, 1e-5)
    assert_close(eight.extra, one.extra, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.quantizer.type": "ema", "codebook.revive": 2, "loss.lecam": 0.1},
        {"codebook.start": "kmeans"} | ALONE,
    ],
    ids=["ema", "kmeans"],
)
def test_micro_batches_change_the_codebook_once_and_by_the_whole_batch(changes):
    (start, whole), (once,) = run_steps(changes, batches=[BATCH])
    (_, parts), (in_parts,) = run_steps(changes, batches=[BATCH], accumulate=4)
    books = [
        state.extra["generator"].get("codebook") or state.params["generator"]["quantizer"] for state in (whole, parts)
    ]
    for wanted, got in (books, (whole.extra, parts.extra)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6), wanted, got)
    for name in ("usage", "perplexity"):
        np.testing.assert_allclose(in_parts[name], once[name], rtol=1e-6)
    if "codebook.start" in changes:
        assert np.abs(books[0]["codebook"] - start.params["generator"]["quantizer"]["codebook"]).max() > 0.01


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_a_run_from_its_own_weights_keeps_its_codebook(kind, tmp_path):
    """A training that began with k-means, and one that goes on from it and asks for k-means again."""
    first = UNIT if kind == "nearest" else EVERYTHING
    (*_, trained), _ = run_steps(first)
    options = config(**first).model
    vq = vqgan_jax.Vqgan.assemble(
        options, {"params": trained.params["generator"], **trained.extra["generator"]}, "trained"
    )
    vqgan_jax.save(vq, tmp_path / "first.safetensors")
    changes = {"pretrained": str(tmp_path / "first.safetensors"), "codebook.start": "kmeans"} | ALONE
    (_, after), _ = run_steps(changes, batches=[BATCH], lr=0.0)
    if kind == "nearest":
        jax.tree.map(np.testing.assert_array_equal, after.params["generator"], trained.params["generator"])
    else:
        x = jnp.asarray(BATCH["image"] / 127.5 - 1, jnp.float32)
        z = jax.jit(lambda v, x: vq.module.apply(v, x, method="latents"))(vq.variables, x)
        book = jax.tree.map(jnp.asarray, trained.extra["generator"]["codebook"]["quantizer"])
        codes = quantize.nearest_codes(z, book["points"])
        wanted = codebook.update_moving_means(book, codes, z, options.quantizer.decay)
        for name, value in after.extra["generator"]["codebook"]["quantizer"].items():
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5)


EMA = {
    "model.quantizer.type": "ema",
    "model.quantizer.size": 256,
    "ema.decay": 0.9,
    "ema.players": ("generator",),
} | ALONE


def test_an_ema_codebook_is_averaged_with_its_encoder():
    states, _ = run_steps(EMA | {"codebook.revive": 1})
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


def test_without_an_average_of_the_generator_that_of_its_ema_codebook_is_the_codebook():
    """So that the average can be switched on and off where a run goes on: its checkpoint has the same arrays."""
    off = EMA | {"ema.players": ("discriminator",)}
    assert averaging.decay(config(**off)) == averaging.decay(config(**EMA | {"ema.decay": 0.0})) == 0
    (*_, state), _ = run_steps(off)
    np.testing.assert_array_equal(state.extra["averaged"], state.extra["generator"]["codebook"]["quantizer"]["points"])


def test_the_average_of_an_ema_codebook_does_not_count_skipped_updates():
    batch = {name: x.astype(np.float32) for name, x in BATCH.items()}
    bad = {name: np.full_like(x, np.nan) for name, x in batch.items()}
    (*_, good), _ = run_steps(EMA, batches=[batch] * 2)
    (*_, skipping), _ = run_steps(EMA, batches=[bad, bad, batch, batch])
    assert skipping.counters["skipped"] == 2
    jax.tree.map(np.testing.assert_array_equal, good.extra, skipping.extra)


@pytest.fixture(scope="module")
def with_adam():
    """`(states, metrics)` of four updates with moments, after which codes are revived; the last loss is no number."""
    made = task.make(config(**{"codebook.revive": 1, "model.quantizer.size": 256}), None)

    def loss(params, extra, batch, rng, step):
        value, rest = made.loss(params, extra, batch, rng, step)
        return value + jnp.where(step == 3, jnp.nan, 0.0), rest

    def revise(*state):
        params, extra, moved, metrics = made.revise(*state)
        return params, extra, moved, metrics | {"moved": moved["generator/quantizer/codebook"]}

    instrumented = dataclasses.replace(made, loss=loss, revise=revise)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        adam = optimizer(optax.adam(1e-2), 1e-2)
        plan = plan_state(instrumented, adam, mesh, BATCH, seed=0, ema_players=("generator",))
        step = make_train_step(instrumented, plan.optimizer, mesh, plan.abstract, seed=0, ema_decay=0.9)
        state = plan.create()
        states, history = [jax.device_get(state)], []
        for _ in range(4):
            state, metrics = step(state, BATCH)
            states.append(jax.device_get(state))
            history.append(jax.device_get(metrics))
    return states, history


def test_a_revived_code_forgets_its_moments(with_adam):
    state, moved = with_adam[0][3], with_adam[1][2]["moved"]
    last, used = state.extra["usage"]["last"], state.extra["usage"]["share"] > 0
    book = state.params["generator"]["quantizer"]["codebook"]
    moments = state.opt_state[0].mu["generator"]["quantizer"]["codebook"]
    assert moved.any() and not moved.all() and used.any() and (last[moved] == 2).all()
    assert not np.any(moments[moved])
    assert np.any(moments[~moved])
    np.testing.assert_array_equal(state.ema["generator"]["quantizer"]["codebook"][moved], book[moved])


def test_an_update_with_broken_numbers_changes_neither_player(with_adam):
    *_, before, after = with_adam[0]
    assert [metrics["skipped"] for metrics in with_adam[1]] == [0, 0, 0, 1]
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    jax.tree.map(np.testing.assert_array_equal, before.extra, after.extra)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook.start": "zeros"}, "codebook.start = 'zeros'; it must be one of random, kmeans"),
        ({"codebook.revive": -1}, "codebook.revive = -1; it must be 0 or more"),
        (
            {"model.quantizer.type": "fsq", "codebook.revive": 5},
            "it must be the default for fsq, which has no codebook",
        ),
        ({"model.quantizer.type": "gumbel", "codebook.start": "kmeans"}, "it must be the default for gumbel"),
        ({"loss.adversarial": "wgan"}, "hinge, vanilla, non_saturating, none"),
        ({"loss.pixels": "l3"}, "one of l1, l2"),
        ({"loss.disc_ramp": 0}, "disc_ramp = 0; it must be at least 1"),
        ({"loss.r1": -1.0}, "r1 = -1.0; it must be 0 or more"),
        ({"perceptual.type": "lpips"}, "needs config.perceptual.path: weights of LPIPS"),
        ({"model.groups": 3}, "groups = 3 does not divide the 8 channels of level 0"),
        ({"model.resolution": 17, "model.multipliers": (1, 2)}, "resolution = 17 is not divisible by f = 2"),
        ({"model.attention": (5,)}, "attention has 5; the maps are"),
        ({"compute.dtype": "float16"}, "one of float32, bfloat16"),
        ({"discriminator.norm": "layer"}, "one of group, batch"),
        ({"augment.scale": (0.0, 1.0)}, r"it must be in \(0, 1\]"),
        ({"augment.scale": (0.9, 0.5)}, "two shares of the area"),
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
