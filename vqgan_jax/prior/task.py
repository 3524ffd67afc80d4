"""The second stage as a task: codes of a frozen VQGAN, computed once, and a transformer that learns their order.

Batches: `codes` int32 [B, h, w], `label` int32 [B]. The run directory keeps the tokenizer beside the weights, in
`vqgan.safetensors`, and needs the one it came from no more.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from train_jax.data.errors import BrokenSample
from train_jax.errors import ConfigError
from train_jax.profiling import BACKWARD, dense_flops, transformer_flops
from train_jax.task import Task
from vqgan_jax import codes as codes_lib
from vqgan_jax import vqgan as vqgan_lib
from vqgan_jax.prior import evaluators, model
from vqgan_jax.prior.evaluators import NATS

TOKENIZER = "vqgan.safetensors"


def defaults() -> ConfigDict:
    """The second stage's part of a config."""
    c = ConfigDict()
    c.vqgan = ConfigDict({"path": "", "size": 0})  # what vqgan_jax.load opens; side of the pictures, 0: its own
    c.codes = ConfigDict({"dir": "", "flip": False})  # where codes are kept, "": in the run directory; mirrored too
    c.model = model.defaults()
    c.label_dropout = 0.1  # share of labels that are hidden, so that guidance has something to go beyond
    c.evaluators = evaluators.defaults()
    return c


def make(config: ConfigDict, workdir: Path | None) -> Task:
    """The task of a resolved config. ConfigError for options that cannot be, LoadError for a tokenizer that cannot."""
    if not 0 <= config.label_dropout < 1:
        raise ConfigError(f"config.label_dropout = {config.label_dropout} must be in [0, 1)")
    vq = codes_lib.open_frozen(config.vqgan.path, workdir / TOKENIZER if workdir else None)
    size = config.vqgan.size or vq.size
    if size % vq.factor:
        raise ConfigError(f"config.vqgan.size = {size} must be divisible by {vq.factor}, the pixels along a code")
    shape = (size // vq.factor,) * 2
    module = model.build(config.model, vq.codes, shape[0] * shape[1])
    records = codes_lib.records_of(vq, config.codes, size, workdir)

    def init(rng, batch):
        codes, labels = jnp.zeros((1, module.length), jnp.int32), jnp.zeros((1,), jnp.int32)
        return {"prior": module.init(rng, codes, labels)["params"]}, {}

    def loss(params, extra, batch, rng, step):
        codes = batch["codes"].reshape(len(batch["codes"]), -1)
        hide, drop = jax.random.split(rng)
        labels = jnp.where(jax.random.bernoulli(hide, config.label_dropout, batch["label"].shape), -1, batch["label"])
        logits = module.apply({"params": params["prior"]}, codes, labels, False, rngs={"dropout": drop})
        value = optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()
        right = jnp.mean(jnp.argmax(logits, axis=-1) == codes)
        return value, ({"bits_per_code": value / NATS, "accuracy": right}, {})

    def example(record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = -1
        if module.classes:
            label = int(record.get("label", -1))  # below 0: an image without a label, of which no class is learnt
            if label >= module.classes:
                raise BrokenSample(f"label {label}, where config.model.classes = {module.classes}")
        return {"codes": codes_lib.choose(record["codes"], rng), "label": np.int32(label)}

    m = config.model
    forward = transformer_flops(module.length, m.width, m.depth, m.mlp_ratio)
    forward += dense_flops(module.length, m.width, module.size)
    return Task(
        init=init,
        loss=loss,
        example=example,
        evaluators=evaluators.factories(module, vq, records, example, shape),
        artifacts={TOKENIZER: vqgan_lib.to_bytes(vq)},
        records=records,
        flops=float(BACKWARD * forward),
    )
