"""Prints the memory plans of training steps at published sizes, and of the contrastive loss with and without tiles.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -m benchmarks.memory

Programs are compiled for eight devices but not run; memory is per device. The training step is the trainer's step with the
config's optimiser and moving averages. The losses include forward and backward passes at global batches of 8,192 to 131,072
embeddings of dimension 512.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from clip_jax import loss, model, ring_loss
from clip_jax.flops import training_flops
from clip_jax.options import CLIPCompute
from dalle_jax.captions import CharBpeCaptions
from train_jax import config as config_lib
from train_jax import profiling, sharding
from train_jax import task as task_lib
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


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("models", "vqgans", "dalles", "losses"), help="print only this table")
    only = parser.parse_args().only
    if jax.device_count() != 8:
        raise SystemExit("set XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu")
    if only in (None, "models"):
        print(f"Training step, batch {BATCH}, per device:")
        _print_row("model", "mesh", "parameters", "state and batch", "temporaries", "total", "GFLOP a pair")
        _print_row(*["---"] * 7)
        for name in MODELS:
            for mesh in MESHES:
                print_clip_plan(name, mesh)
    if only in (None, "vqgans"):
        print("\nGAN step of VQGAN at 256 pixels, per device:")
        _print_row("model", "mesh", "batch", "parameters", "state and batch", "temporaries", "total")
        _print_row(*["---"] * 7)
        for name in VQGANS:
            for mesh in ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}):
                print_vqgan_plan(name, mesh)
    if only in (None, "dalles"):
        print("\nTraining step of DALL-E, the config's batch, per device:")
        _print_row("model", "mesh", "batch", "micro-batches", "parameters", "state and batch", "temporaries", "total")
        _print_row(*["---"] * 8)
        for name, (*codes, parts) in DALLES.items():
            for accumulate in (1, parts):
                for mesh in ({"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}):
                    print_dalle_plan(name, codes, accumulate, mesh)
    if only in (None, "losses"):
        print(f"\nTemporary memory of the softmax loss and its gradient, 8 devices, {DIM} numbers, per device:")
        _print_row("global batch", "dense", "tiles of 1,024")
        _print_row(*["---"] * 3)
        for size in (8_192, 32_768, 131_072):
            print_loss_plans(size)


def _print_row(*cells) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def _format_mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def print_clip_plan(name: str, sizes: dict) -> None:
    """Compiles the training step of a CLIP and prints its memory plan."""
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
    count, plan = _compile_plan(task, config, mesh, batch)
    sizes = (_format_mib(x) for x in (plan.arguments, plan.temporaries, plan.total))
    _print_row(name, _format_mesh(mesh), f"{count:,}", *sizes, f"{training_flops(module.options) * 1e-9:,.0f}")


def print_vqgan_plan(name: str, sizes: dict) -> None:
    """Compiles the GAN training step of a VQGAN without perceptual loss and prints its memory plan."""
    config = load_config(f"vqgan/{name}")
    config.mesh, config.perceptual, config.data.batch_size = sizes, {"type": "none"}, VQGAN_BATCH
    config = config_lib.resolve(config)
    mesh, size = sharding.make_mesh(config.mesh), config.model.resolution
    batch = {"image": jax.ShapeDtypeStruct((config.data.batch_size, size, size, 3), jnp.uint8)}
    count, plan = _compile_plan(task_lib.module(config).make(config, None), config, mesh, batch)
    sizes = (_format_mib(x) for x in (plan.arguments, plan.temporaries, plan.total))
    _print_row(name, _format_mesh(mesh), str(config.data.batch_size), f"{count:,}", *sizes)


class _Captions(CharBpeCaptions):
    """Captions of a given length, without a tokenizer."""

    @property
    def null(self):
        return np.zeros(self.length, np.int32)


def print_dalle_plan(name: str, codes: tuple[int, tuple[int, int]], accumulate: int, sizes: dict) -> None:
    """Compiles the training step of a DALL-E and prints its memory plan."""
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
    count, plan = _compile_plan(Task(init=init, loss=loss, example=None), config, mesh, batch)
    sizes = (_format_mib(x) for x in (plan.arguments, plan.temporaries, plan.total))
    _print_row(name, _format_mesh(mesh), str(rows), str(accumulate), f"{count:,}", *sizes)


def _format_mesh(mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)


def _compile_plan(task: Task, config, mesh, batch) -> tuple[int, profiling.MemoryPlan]:
    """Compiles the training step; returns the number of parameters and the memory plan."""
    state, step = trace_step(config, task, mesh, batch, {})
    with jax.set_mesh(mesh):
        plan = profiling.memory_plan(step.lower().compile())
    return sum(x.size for x in jax.tree.leaves(state.abstract.params)), plan


def print_loss_plans(size: int) -> None:
    """Prints the temporary memory of the contrastive loss and its gradient, dense and in tiles."""
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    shapes = [jax.ShapeDtypeStruct((size, DIM), jnp.float32, sharding=sharding.batch_sharding(mesh))] * 2
    sizes = []
    for function in (loss.softmax_loss, functools.partial(ring_loss.softmax_loss, tile=1024)):
        gradient = jax.grad(lambda x, y, f=function: f(x, y, jnp.float32(50), jnp.arange(size))[0], argnums=(0, 1))
        with jax.set_mesh(mesh):
            compiled = jax.jit(gradient).lower(*shapes).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    _print_row(f"{size:,}", *map(_format_mib, sizes))


if __name__ == "__main__":
    main()
