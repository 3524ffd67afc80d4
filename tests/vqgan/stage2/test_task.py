"""The task of a second stage: losses computed by hand, dropped conditions, codes with and without the cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.options import DALLEOptions
from nn_jax.code_transformer import CodeTransformer
from train_jax import optim, sharding
from train_jax.compute import TransformerCompute
from train_jax.errors import ConfigError
from train_jax.plan import hlo
from train_jax.step import make_train_step, plan_state
from vqgan_jax.prior.options import PriorOptions
from vqgan_jax.stage2 import model
from vqgan_jax.stage2.generator import CodeGenerator

OPTIONS = {"class": PriorOptions, "text": DALLEOptions}
RNG = np.random.default_rng(0)


def batch_of(condition, count: int) -> dict[str, jax.Array]:
    values = ["zero", "the digit one", "two", "a handwritten three"] if condition.kind == "text" else [0, None, 2, 3]
    tokens = condition.encode((values * count)[:count])
    return {"condition": jnp.asarray(tokens), "codes": jnp.asarray(RNG.integers(0, 12, (count, 4, 4)), jnp.int32)}


def module_of(config, condition) -> CodeTransformer:
    options = OPTIONS[condition.kind].parse(config.model, "model")
    compute = TransformerCompute.parse(config.compute, "compute")
    return model.build(options, condition, 12, (4, 4), compute, config.dropout)


def params_of(task):
    """Weights so large that every token has a likelihood of its own."""
    params = nn.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0), {}))[0])

    def draw(path, x):
        return float(path[-1].key == "scale") + 0.3 * RNG.standard_normal(x.shape, np.float32)

    return jax.tree.map_with_path(draw, params)


@pytest.mark.parametrize("kind, vocabulary", [("class", "separate"), ("text", "separate"), ("text", "joint")])
def test_the_loss_is_the_mean_over_tokens(make_task, conditions, kind, vocabulary):
    """Half of the conditions are dropped: their codes count, their tokens do not. Means of both kinds are weighted."""
    weights = {"loss": {"condition": 0.3, "codes": 0.7}} if kind == "text" else {}
    task, config = make_task(kind, model={"vocabulary": vocabulary}, condition_dropout=0.5, **weights)
    condition, key = conditions[kind], jax.random.key(3)
    batch, params = batch_of(condition, 16), params_of(task)
    value, (metrics, statistics) = jax.jit(lambda p: task.loss(p, {}, batch, key, 0))(params)

    is_dropped = np.asarray(jax.random.bernoulli(jax.random.split(key)[0], 0.5, (16,)))
    assert 4 < is_dropped.sum() < 12 and statistics == {}
    tokens = np.where(is_dropped[:, None], condition.null, batch["condition"])
    codes = np.asarray(batch["codes"]).reshape(16, -1)
    logits = jax.jit(module_of(config, condition).apply)({"params": params["generator"]}, tokens, codes)
    assert (logits[0] is None) == (kind == "class")

    def nats(logits, row, position, token):
        x = np.asarray(logits[row, position], np.float64)
        return np.log(np.exp(x).sum()) - x[token]

    offset = condition.vocabulary_size if vocabulary == "joint" else 0
    code_nats = np.mean([nats(logits[1], row, i, offset + codes[row, i]) for row in range(16) for i in range(16)])
    expected = code_nats
    assert metrics["bits_per_code"] == pytest.approx(code_nats / np.log(2), rel=1e-5)
    best = np.argmax(np.asarray(logits[1])[..., offset:], axis=-1)
    assert metrics["accuracy"] == pytest.approx(np.mean(best == codes), rel=1e-6)
    if kind == "text":
        words = condition.tokenizer.vocab_size  # what lies above are pads
        condition_nats = np.mean(
            [
                nats(logits[0], row, i - 1, tokens[row, i])
                for row in np.flatnonzero(~is_dropped)
                for i in range(1, condition.length)
                if tokens[row, i] < words
            ]
        )
        assert metrics["bits_per_text_token"] == pytest.approx(condition_nats / np.log(2), rel=1e-5)
        expected = 0.3 * condition_nats + 0.7 * code_nats
    else:
        assert metrics.keys() == {"bits_per_code", "accuracy"}
    assert value == pytest.approx(expected, rel=1e-5)


def test_four_grids_are_overfitted_in_bfloat16_as_in_float32(make_task, conditions, untrained_vqgan, learn):
    """Random codes of four conditions are sampled for them in the end; the first losses in bfloat16 are those of float32."""
    condition, curves = conditions["text"], {}
    values = ["zero", "one", "the digit two", "three"]
    codes = np.random.default_rng(0).integers(0, 12, (4, 4, 4)).astype(np.int32)
    batch = {"condition": condition.encode(values), "codes": codes}
    for dtype, updates in (("float32", 120), ("bfloat16", 8)):
        changes = {"compute": {"dtype": dtype}, "steps": 120, "condition_dropout": 0.0, "optim": {"lr": 1e-2}}
        task, config = make_task("text", model={"width": 32}, **changes)
        state, history = learn(task, config, batch, updates)
        curves[dtype] = [float(metrics["loss"]) for metrics in history]
        if dtype == "float32":
            assert history[-1]["bits_per_code"] < 0.05 and history[-1]["bits_per_text_token"] < 1
            params = state.params["generator"]
            options = DALLEOptions.parse(config.model, "model")
            generator = CodeGenerator.assemble(options, params, condition, untrained_vqgan, 16, "overfitted")
            drawing = generator.draw(values, temperature=0, progress=False)
            np.testing.assert_array_equal(drawing.codes[:, 0], codes)
    # Products are rounded to 8 bits: the first losses are off by less than 5e-4, later ones diverge with Adam's steps, from
    # the seventh on by more than a hundredth.
    np.testing.assert_allclose(curves["bfloat16"][:4], curves["float32"][:4], rtol=2e-3)
    np.testing.assert_allclose(curves["bfloat16"][:6], curves["float32"][:6], rtol=0.01)
    assert curves["bfloat16"][-1] < 0.8 * curves["bfloat16"][0]


def test_flags_of_a_condition_are_averaged(make_task, conditions):
    task, _ = make_task("text")
    batch = batch_of(conditions["text"], 4) | {"truncated": jnp.array([True, False, False, False])}
    params = jax.eval_shape(lambda: task.init(jax.random.key(0), {}))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), nn.unbox(params))
    metrics = jax.jit(lambda p: task.loss(p, {}, batch, jax.random.key(0), 0)[1][0])(zeros)
    assert metrics["truncated"] == 0.25


def test_codes_on_the_fly_are_those_of_the_cache(make_task, conditions, untrained_vqgan):
    cached, _ = make_task("text", condition_dropout=0.0)
    fresh, _ = make_task("text", condition_dropout=0.0, codes={"cached": False})
    assert fresh.records is None and cached.records is not None
    images = RNG.integers(0, 256, (4, 16, 16, 3), np.uint8)
    batch = batch_of(conditions["text"], 4) | {"codes": jnp.asarray(untrained_vqgan.encode(images))}
    params, extra = params_of(cached), fresh.pretrained()[1]
    a = jax.jit(lambda p: cached.loss(p, {}, batch, jax.random.key(0), 0)[0])(params)
    pictures = {"condition": batch["condition"], "image": jnp.asarray(images)}
    b = jax.jit(lambda p, e: fresh.loss(p, e, pictures, jax.random.key(0), 0)[0])(params, extra)
    assert float(a) == pytest.approx(float(b), rel=1e-6)


def test_an_example_is_a_condition_and_the_codes_of_one_view(make_task):
    task, _ = make_task("class", codes={"flip": True})
    codes = RNG.integers(0, 12, (2, 4, 4)).astype(np.int32)
    views = [task.example({"label": 3, "codes": codes}, np.random.default_rng(i))["codes"].tolist() for i in range(20)]
    assert {str(view) for view in views} == {str(view.tolist()) for view in codes}
    example = task.example({"label": 3, "codes": codes[:1]}, np.random.default_rng(0))
    assert example.keys() == {"condition", "codes"} and example["condition"].tolist() == [3]
    np.testing.assert_array_equal(example["codes"], codes[0])


def run_steps(task, batch, devices: int, fsdp: int = 1, tensor: int = 1, accumulate: int = 1):
    """Metrics of three updates, the parameters after them, and the collectives of the compiled step."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": tensor}, jax.devices()[:devices])

    def make_optimizer(params, axes):
        return optim.Optimizer(optax.sgd(0.05), {"generator": lambda _: 0.05})

    with jax.set_mesh(mesh):
        plan = plan_state(task, make_optimizer, mesh, batch, seed=0)
        step = make_train_step(task, plan.optimizer, mesh, plan.abstract, seed=0, accumulate=accumulate)
        state, history = plan.create(), []
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        step = step.lower(state, placed).compile()
        for _ in range(3):
            state, metrics = step(state, placed)
            history.append([float(x) for name, x in sorted(metrics.items())])
    return history, jax.device_get(state.params), hlo.collectives(hlo.parse(step.as_text()))


def assert_same_updates(actual, expected) -> None:
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual[1], expected[1])


def test_eight_devices_compute_what_one_does(make_task, conditions):
    """Data, FSDP and tensor parallelism together: two by two by two devices."""
    task, _ = make_task("text")
    batch = batch_of(conditions["text"], 16)
    assert_same_updates(run_steps(task, batch, 8, 2, 2), run_steps(task, batch, 1))


def test_devices_add_up_gradients_of_micro_batches_before_they_exchange_them(make_task, conditions):
    """The number of scored tokens differs between devices: the mean is over those of all."""
    task, _ = make_task("text", condition_dropout=0.0)
    batch = batch_of(conditions["text"], 16)
    actual = run_steps(task, batch, 4, accumulate=2)
    assert_same_updates(actual, run_steps(task, batch, 1, accumulate=2))
    assert_same_updates(run_steps(task, batch, 8, 2, 2, accumulate=2), actual)
    in_loops = sum(x.bytes for x in actual[2] if x.in_loop)
    assert in_loops == 8 < sum(x.bytes for x in actual[2]), "in the loop the numbers of tokens alone"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vqgan": {"path": ""}}, "config.vqgan.path is empty"),
        ({"vqgan": {"size": 18}}, r"config.vqgan.size = 18 must be divisible by 4"),
        ({"condition_dropout": 1.0}, "condition_dropout = 1.0; it must be in"),
        ({"augment": {"flip": True}}, "augment = .*the default with codes.cached = True"),
        ({"codes": {"cached": False, "flip": True}}, "codes.flip = True; it must be False with codes.cached = False"),
        ({"model": {"heads": 3}}, "config.model.width = 16; it must be a multiple of config.model.heads"),
    ],
)
def test_wrong_options_are_refused(make_task, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_task("class", **changes)


def test_the_log_warns_of_a_model_worse_than_a_uniform_guess(make_task):
    task, _ = make_task("class")
    uniform = np.log2(12)
    assert task.warnings({"bits_per_code": uniform - 0.1}, 500) == []
    assert task.warnings({"bits_per_code": uniform + 1}, 50) == [], "not at the start"
    (words,) = task.warnings({"bits_per_code": uniform + 1}, 500)
    assert "4.58 bits per code, uniform has 3.58" in words and "optim.lr" in words


def test_flops_are_those_counted_by_hand(make_task, conditions):
    """Of both passes: three times the products of the forward pass, two operations for a multiplication and its sum."""

    def blocks(stream):  # two of width 16: projections and MLP, 12 width^2 a token; scores and weighted sums
        return 2 * 2 * (stream * 12 * 16**2 + 2 * stream**2 * 16)

    assert make_task("class")[0].flops == 3 * (blocks(16) + 2 * 16 * 16 * 12)
    words = conditions["text"].vocabulary_size
    assert make_task("text")[0].flops == 3 * (blocks(27) + 2 * 11 * 16 * words + 2 * 16 * 16 * 12)
    joint = make_task("text", model={"vocabulary": "joint"})[0]
    assert joint.flops == 3 * (blocks(27) + 2 * 11 * 16 * words + 2 * 16 * 16 * (words + 12))
