"""Plans the memory of training steps at published sizes, and of the contrastive loss with and without tiles.

    python -m benchmarks.memory [--only models vqgans dalles losses]

Programs are compiled for eight fake devices of the CPU but not run; memory is per device. The training step is the trainer's
step with the config's optimiser and moving averages. The losses include forward and backward passes at global batches of
8,192 to 131,072 embeddings of dimension 512.
"""

import argparse
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from benchmarks.command import main
from benchmarks.results import Row
from benchmarks.timing import size_row
from clip_jax import loss, model, ring_loss
from clip_jax.flops import training_flops
from clip_jax.options import CLIPCompute
from dalle_jax.captions import SubwordCaptions
from train_jax import config as config_lib
from train_jax import profiling, sharding
from train_jax import task as task_lib
from train_jax.plan.targets import Target
from train_jax.prepare import trace_step
from train_jax.task import Task
from vqgan_jax.stage2 import model as stage2_model
from vqgan_jax.stage2.task import make_loss

MODELS = ("vit_b32", "vit_b16", "vit_l14", "siglip_b16", "rn50")
VQGANS = ("f16_1024", "f16_16384", "f8_gumbel")
# Codebook size and code grid of the VQGAN; number of micro-batches for eight devices.
DALLES = {"mindalle_1b3": (16_384, (16, 16), 8), "dalle1_12b": (8_192, (32, 32), 64)}
MESHES = ({"data": -1, "fsdp": 8, "tensor": 1}, {"data": -1, "fsdp": 2, "tensor": 4})
BATCH = 256
VQGAN_BATCH = 96
DIM = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=list(PLANS), choices=PLANS, help="plan only these")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    Target.parse("fake:8").set_environment()
    for name in arguments.only:
        yield from PLANS[name]()


def plan_models() -> Iterator[Row]:
    """Plans the training steps of CLIP."""
    for name, mesh in itertools.product(MODELS, MESHES):
        yield from plan_clip(name, mesh)


def plan_vqgans() -> Iterator[Row]:
    """Plans the GAN steps of VQGAN at 256 pixels."""
    meshes = ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1})
    for name, mesh in itertools.product(VQGANS, meshes):
        yield from plan_vqgan(name, mesh)


def plan_dalles() -> Iterator[Row]:
    """Plans the training steps of DALL-E at the config's batch, whole and in micro-batches."""
    meshes = ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2})
    for name, (*codes, parts) in DALLES.items():
        for accumulate, mesh in itertools.product((1, parts), meshes):
            yield from plan_dalle(name, codes, accumulate, mesh)


def plan_losses() -> Iterator[Row]:
    """Plans the softmax loss and its gradient."""
    for size in (8_192, 32_768, 131_072):
        yield from plan_loss(size)


def plan_clip(name: str, sizes: dict) -> Iterator[Row]:
    """Plans the training step of a CLIP."""
    config = load_config(f"clip/{name}")
    config.data.batch_size, config.contrastive.tile, config.mesh = BATCH, 0, sizes
    config = config_lib.resolve(config)
    m = config.model
    compute = CLIPCompute.parse(config.compute, "compute")
    module = model.build(m, m.text.vocab_size, m.text.vocab_size - 1, compute)

    def init(key, batch):
        variables = module.init(key, jnp.zeros((1, m.image.size, m.image.size, 3)), batch["text"][:1])
        return {"clip": variables.pop("params")}, variables

    def value(params, extra, batch, key, step):
        variables = {"params": params["clip"], **extra}
        pixels = batch["image"].astype(jnp.float32) / 127.5 - 1
        options = {"rngs": {"dropout": key}, "mutable": list(extra)}
        (images, texts, scale, bias), extra = module.apply(variables, pixels, batch["text"], False, **options)
        group = jnp.arange(BATCH)
        if m.loss == "softmax":
            return loss.softmax_loss(images, texts, scale, group)[0], ({}, extra)
        return loss.sigmoid_loss(images, texts, scale, bias, group)[0], ({}, extra)

    mesh = sharding.make_mesh(config.mesh)
    task = Task(init, value, lambda record, rng: record)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, m.image.size, m.image.size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((BATCH, m.text.context_length), jnp.int32),
    }
    settings = {"model": f"clip/{name}", "mesh": _format_mesh(mesh), "batch": BATCH}
    yield from _plan_step(task, config, mesh, batch, settings)
    yield Row("FLOPs", training_flops(module.options) * 1e-9, "GFLOP a pair", settings)


def plan_vqgan(name: str, sizes: dict) -> Iterator[Row]:
    """Plans the GAN training step of a VQGAN without perceptual loss."""
    config = load_config(f"vqgan/{name}")
    config.mesh, config.perceptual, config.data.batch_size = sizes, {"type": "none"}, VQGAN_BATCH
    config = config_lib.resolve(config)
    mesh, size = sharding.make_mesh(config.mesh), config.model.resolution
    batch = {"image": jax.ShapeDtypeStruct((config.data.batch_size, size, size, 3), jnp.uint8)}
    settings = {"model": f"vqgan/{name}", "mesh": _format_mesh(mesh), "batch": VQGAN_BATCH}
    yield from _plan_step(task_lib.module(config).make(config, None), config, mesh, batch, settings)


class _Captions(SubwordCaptions):
    """Captions of a given length, without a tokenizer."""

    @property
    def null(self):
        return np.zeros(self.length, np.int32)


def plan_dalle(name: str, codes: tuple[int, tuple[int, int]], accumulate: int, sizes: dict) -> Iterator[Row]:
    """Plans the training step of a DALL-E."""
    config = load_config(f"dalle/{name}")
    config.mesh, config.accumulate = sizes, accumulate
    config = config_lib.resolve(config)
    length = config.model.text_length
    captions = _Captions(bpe=None, length=length, vocabulary_size=config.tokenizer.vocab_size + length, pad=0)
    module = stage2_model.build(config.model, captions, *codes)
    stream_loss = make_loss(module, captions, config)
    rows = config.data.batch_size
    batch = {"condition": jax.ShapeDtypeStruct((rows, length), jnp.int32)}
    batch["codes"] = jax.ShapeDtypeStruct((rows, *codes[1]), jnp.int32)

    def init(rng, batch):
        tokens, image = jnp.zeros((1, length), jnp.int32), jnp.zeros((1, module.length), jnp.int32)
        return {"generator": module.init(rng, tokens, image)["params"]}, {}

    def loss(params, extra, batch, rng, step):
        value, metrics = stream_loss(params["generator"], batch["condition"], batch["codes"], rng)
        return value, (metrics, extra)

    mesh = sharding.make_mesh(config.mesh)
    settings = {"model": f"dalle/{name}", "mesh": _format_mesh(mesh), "batch": rows, "micro-batches": accumulate}
    yield from _plan_step(Task(init=init, loss=loss, example=None), config, mesh, batch, settings)


def _format_mesh(mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)


def _plan_step(task: Task, config, mesh, batch, settings: dict) -> Iterator[Row]:
    """Compiles the training step; yields the number of parameters and the memory plan."""
    state, step = trace_step(config, task, mesh, batch, {})
    with jax.set_mesh(mesh):
        plan = profiling.memory_plan(step.lower().compile())
    yield Row("parameters", sum(x.size for x in jax.tree.leaves(state.abstract.params)), "", settings)
    yield size_row("state and batch", plan.arguments, settings)
    yield size_row("temporaries", plan.temporaries, settings)
    yield size_row("total", plan.total, settings)


def plan_loss(size: int) -> Iterator[Row]:
    """Plans the temporary memory of the contrastive loss and its gradient, dense and in tiles."""
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    shapes = [jax.ShapeDtypeStruct((size, DIM), jnp.float32, sharding=sharding.batch_sharding(mesh))] * 2
    losses = {"dense": loss.softmax_loss, "in tiles of 1,024": functools.partial(ring_loss.softmax_loss, tile=1024)}
    for name, function in losses.items():
        gradient = jax.grad(lambda x, y, f=function: f(x, y, jnp.float32(50), jnp.arange(size))[0], argnums=(0, 1))
        with jax.set_mesh(mesh):
            compiled = jax.jit(gradient).lower(*shapes).compile()
        settings = {"loss": f"softmax, {name}", "mesh": _format_mesh(mesh), "batch": size}
        yield size_row("temporaries", compiled.memory_analysis().temp_size_in_bytes, settings)


PLANS = {"models": plan_models, "vqgans": plan_vqgans, "dalles": plan_dalles, "losses": plan_losses}


if __name__ == "__main__":
    main(rows, add_arguments)
