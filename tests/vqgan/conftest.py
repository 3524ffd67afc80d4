"""A very short training of a tiny VQGAN; small configs and their initial weights, for the tests of this folder."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import vqgan_jax
from nn_jax.convolution import Conv
from tests.shared_run import make_shapes, train_once
from train_jax import config as config_lib
from train_jax import sharding
from train_jax.optim import Optimizer
from train_jax.step import COUNTERS, TrainState, make_train_step, plan_state
from vqgan_jax import codebook, model, task

SIZE = 16  # pixels along a side


def tiny_config(data_dir: str | Path) -> ConfigDict:
    """Four updates of a tiny model on the small data set in `data_dir`."""
    c = ConfigDict({"task": "vqgan_jax.task", "steps": 4, "log_every": 1})
    c.data = {"source": "shapes/32", "batch_size": 8, "data_dir": str(data_dir)}
    c.model = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "resolution": 16, "attention": (), "groups": 4}
    c.model.z_channels = 8
    c.model.quantizer = {"type": "ema", "size": 16, "dim": 4}
    c.codebook = {"start": "kmeans", "revive": 2}
    c.discriminator = {"channels": 8, "layers": 2, "norm": "batch"}
    c.loss = {"disc_start": 1, "disc_warmup": 1, "disc_ramp": 2, "lecam": 0.01}
    c.optim = {"lr": 1e-3, "args": {"b1": 0.5}}
    c.ema = {"decay": 0.5, "players": ("generator",)}
    c.checkpoint = {"every": 2}
    c.evals = {"test": {"type": "reconstruction", "batch_size": 16}, "oracle": {"type": "reading", "most": 10}}
    return c


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[ConfigDict, Path]:
    """`(config, run directory)` of a finished run, its data set beside it; the same for all test workers."""
    counts = {"train": 48, "test": 24, "novel": 8}
    return train_once(
        tmp_path_factory, "vqgan", lambda folder: tiny_config(folder / "data"), lambda folder: make_shapes(folder, counts)
    )


@pytest.fixture(scope="session")
def trained(tiny) -> vqgan_jax.Vqgan:
    return vqgan_jax.load(tiny[1])


# ---------------------------------------------------------------------------------------------------------------------
# Small configs, for tests that need a task, a step or a loss, and no run


def small_config(**changes) -> ConfigDict:
    """A resolved config of one level, 16 x 16 pixels to 16 x 16 codes out of 16; `changes` by dotted name."""
    c = ConfigDict({"task": "vqgan_jax.task", "steps": 10, "data": {"source": "shapes/32", "batch_size": 8}})
    c.model = {"channels": 8, "multipliers": (1,), "blocks": 1, "resolution": SIZE, "attention": (), "groups": 4}
    c.model.update({"z_channels": 8, "middle_attention": False})
    c.model.quantizer = {"size": 16, "dim": 4}
    c.discriminator = {"channels": 8, "layers": 2}
    c.loss, c.perceptual, c.augment, c.codebook, c.ema, c.optim = {"weight": 0.5}, {}, {}, {}, {}, {}
    c.compute = {}
    c.update_from_flattened_dict(changes)
    return config_lib.resolve(c)


@dataclasses.dataclass(frozen=True)
class Small:
    """What the tests of the loss and of the step share.

    Attributes:
      config: `(**changes) -> resolved config`; see `small_config`.
      batch: eight images of random pixels.
      start: `(config) -> (task, params, extra)` with random weights, NumPy arrays.
    """

    config: Callable[..., ConfigDict]
    batch: dict[str, np.ndarray]
    start: Callable[[ConfigDict], tuple]


def random_state(abstract):
    """Random params and `extra` of these shapes, drawn by NumPy: `Task.init` would be one more program to compile.

    An array depends on its path and shape only.
    """

    def draw(path, x):
        name, rng = path[-1].key, np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        if name in ("scale", "var", "count"):
            return np.ones(x.shape, x.dtype)
        if name in ("bias", "mean", "share", "real", "fake"):
            return np.zeros(x.shape, x.dtype)
        if name == "kernel":
            return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(x.dtype)
        limit = 1 / max(x.shape[:1], default=1)
        return rng.uniform(-limit, limit, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


@pytest.fixture(scope="session")
def small() -> Small:
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)}

    def start(c: ConfigDict):
        made = task.make(c, None)
        params, extra = random_state(nn.unbox(jax.eval_shape(made.init, jax.random.key(0), batch)))
        extra["usage"] = jax.tree.map(np.asarray, codebook.init_usage(c.model.quantizer.size))
        if "averaged" in extra:
            book = extra["generator"]["codebook"]["quantizer"]
            book["total"] = extra["averaged"] = book["points"]
        return made, params, extra

    return Small(small_config, batch, start)


class OneConvolutionEncoder(model.Encoder):
    """Stands in for the encoder in tests of the loss, the codebook and the step: it compiles in a moment."""

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        return Conv(self.out, 3, self.dtype, name="conv_in")(x.astype(self.dtype))


class TwoConvolutionDecoder(model.Decoder):
    """Stands in for the decoder: one convolution, and the last one."""

    @nn.compact
    def __call__(self, x, vectors, deterministic: bool = True):
        return nn.swish(Conv(self.channels, 3, self.dtype, name="conv_in")(x.astype(self.dtype)))


@pytest.fixture(scope="module")
def small_coders():
    """For the tests of a module, encoder and decoder of few layers, which compile in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "Encoder", OneConvolutionEncoder)
        patch.setattr(model, "Decoder", TwoConvolutionDecoder)
        yield


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled step of a task on a mesh, with its first state.

    Attributes:
      start: the first state, NumPy arrays.
      shardings: of a state.
    """

    mesh: jax.sharding.Mesh
    step: Callable
    start: TrainState
    shardings: TrainState

    def run(self, batches) -> tuple[list, list]:
        """`(states, metrics)`: the state before and after each update, and the metrics of each."""
        states, history = [self.start], []
        with jax.set_mesh(self.mesh):
            state = jax.device_put(self.start, self.shardings, may_alias=False)
            for batch in batches:
                state, metrics = self.step(state, jax.device_put(batch, sharding.batch_sharding(self.mesh)))
                states.append(jax.device_get(state))
                history.append(jax.device_get(metrics))
        return states, history


def trainer_of(made, params, extra, batch, tx, lr: float, *, devices: int = 1, fsdp: int = 1, accumulate: int = 1):
    """A `Trainer` by one optimiser for both players; the generator is averaged."""
    mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": 1}, jax.devices()[:devices])

    def make_optimizer(params, axes):
        return Optimizer(tx, dict.fromkeys(params, lambda _: lr))

    with jax.set_mesh(mesh):
        plan = plan_state(made, make_optimizer, mesh, batch, seed=0, ema_players=("generator",))
        options = {"seed": 0, "ema_decay": 0.9, "accumulate": accumulate}
        step = make_train_step(made, plan.optimizer, mesh, plan.abstract, **options)
    start = TrainState(
        step=np.zeros((), np.int32),
        params=params,
        extra=extra,
        opt_state=jax.device_get(jax.jit(tx.init)(params)),
        ema={"generator": params["generator"]},
        counters={name: np.zeros((), np.int32) for name in COUNTERS},
    )
    return Trainer(mesh, step, start, jax.tree.map(lambda x: x.sharding, plan.abstract))


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., Trainer]:
    return trainer_of


@pytest.fixture(scope="module")
def run_steps(small):
    """`run_steps(changes, devices, ...) -> (states, metrics)`: updates by SGD; a program is compiled once a module."""

    @functools.cache
    def trainer(changes: tuple, devices: int, fsdp: int, accumulate: int, lr: float) -> Trainer:
        made, params, extra = small.start(small.config(**dict(changes)))
        if made.pretrained is not None:
            loaded = made.pretrained()
            params, extra = params | loaded[0], extra | loaded[1]
        mesh = {"devices": devices, "fsdp": fsdp}
        return trainer_of(made, params, extra, small.batch, optax.sgd(lr), lr, accumulate=accumulate, **mesh)

    def run(changes: dict, devices: int = 1, *, fsdp=1, batches=None, accumulate=1, lr=0.05):
        return trainer(tuple(changes.items()), devices, fsdp, accumulate, lr).run(batches or [small.batch] * 3)

    return run
