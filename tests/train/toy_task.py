"""A two-player toy: a generator that maps noise to pairs, a discriminator that tells them from the data.

Small enough for its losses and updates to be written by hand, and with everything a GAN asks of the step: two players in
one scalar, `stop_gradient` between them, state without gradients, randomness, logical axes.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.config import EvaluatorOptions
from train_jax.options import Options, option
from train_jax.task import Task


class Mlp(nn.Module):
    width: int
    out: int

    @nn.compact
    def __call__(self, x):
        def dense(features, axes, name):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
            bias = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:])
            return nn.Dense(features, kernel_init=init, bias_init=bias, name=name)

        x = jnp.tanh(dense(self.width, ("embed", "mlp"), "hidden")(x))
        x = nn.with_logical_constraint(x, ("batch", "mlp"))
        return dense(self.out, ("mlp", "embed"), "out")(x)


GENERATOR = Mlp(16, 4)
DISCRIMINATOR = Mlp(16, 1)
NOISE = 0.1


def generator_loss(generator, discriminator, batch, noise):
    fake = GENERATOR.apply({"params": generator}, batch["z"] + noise)
    logits = DISCRIMINATOR.apply({"params": discriminator}, fake)
    return jnp.mean(jax.nn.softplus(-logits)) + 0.1 * jnp.mean((fake - batch["x"]) ** 2)


def discriminator_loss(generator, discriminator, batch, noise):
    fake = GENERATOR.apply({"params": generator}, batch["z"] + noise)
    real_logits = DISCRIMINATOR.apply({"params": discriminator}, batch["x"])
    fake_logits = DISCRIMINATOR.apply({"params": discriminator}, fake)
    return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))


def init(rng, batch):
    first, second = jax.random.split(rng)
    params = {
        "generator": GENERATOR.init(first, batch["z"])["params"],
        "discriminator": DISCRIMINATOR.init(second, batch["x"])["params"],
    }
    return params, {"mean": jnp.zeros((4,))}


def loss(params, extra, batch, rng, step):
    noise = NOISE * jax.random.normal(rng, batch["z"].shape)
    frozen = jax.lax.stop_gradient(params)
    loss_g = generator_loss(params["generator"], frozen["discriminator"], batch, noise)
    loss_d = discriminator_loss(frozen["generator"], params["discriminator"], batch, noise)
    mean = 0.9 * extra["mean"] + 0.1 * jnp.mean(batch["x"], axis=0)
    return loss_g + loss_d, ({"loss_g": loss_g, "loss_d": loss_d}, {"mean": mean})


def example(record, rng):
    pixels = np.frombuffer(record["image"][-64:], np.uint8).astype(np.float32) / 255
    return {"x": pixels[:4], "z": rng.standard_normal(4).astype(np.float32)}


def batch(size=16, seed=0):
    draw = np.random.default_rng(seed)
    return {
        "x": draw.standard_normal((size, 4)).astype(np.float32),
        "z": draw.standard_normal((size, 4)).astype(np.float32),
    }


TASK = Task(init=init, loss=loss, example=example, flops=1e3)


def norm_of(params):
    return sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(params)) ** 0.5


def evaluated_example(record, rng):
    return {"pixels": np.frombuffer(record["image"][-64:], np.uint8).astype(np.float32)}


def pixels_of(params, extra, batch):
    return batch["pixels"]


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    width: int = option(16, "of the hidden layers", least=1)


@dataclasses.dataclass(frozen=True)
class OPTIONS(Options):
    model: ModelOptions = ModelOptions()

    def identity(self):
        return {"model": self.model.identity()}


@dataclasses.dataclass(frozen=True)
class NormOptions(EvaluatorOptions):
    scale: float = option(1.0, "of the norm")


@dataclasses.dataclass(frozen=True)
class OrderOptions(EvaluatorOptions):
    records: int = option(27, "of the test split", least=1)


EVALUATORS = {"norm": NormOptions, "order": OrderOptions}


def make(config, workdir):
    def norm(options, context):
        def evaluate(params, extra):
            return {"norm": options.scale * norm_of(params)}, {"grey": np.full((4, 6, 3), 128, np.uint8)}

        return evaluate

    def order(options, context):
        """How many records' results are another record's."""
        source = context.source("", "test")
        records = [source[i] for i in range(options.records)]
        expected = np.stack([np.frombuffer(record["image"][-64:], np.uint8) for record in records])

        def evaluate(params, extra):
            program = context.jit(pixels_of)
            batches = context.batches(records, evaluated_example, 8)
            results = [np.asarray(program(params, extra, batch))[:real] for batch, real in batches]
            return {"misplaced": float(np.sum(np.any(np.concatenate(results) != expected, axis=1)))}, {}

        return evaluate

    return Task(init=init, loss=loss, example=example, evaluators={"norm": norm, "order": order}, flops=1e3)
