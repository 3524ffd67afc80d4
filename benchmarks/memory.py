"""Published sizes compiled for eight devices, and how much memory each needs; and what tiles save in the loss.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -m benchmarks.memory

Nothing is run: the plans are those of the compiled programs, per device. The training step is the trainer's own, with the
config's optimiser; the losses are forward and backward at global batches of 8,192 to 131,072 embeddings of 512 numbers.
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from benchmarks import load_config
from clip_jax import loss, model, tiled
from clip_jax.flops import training
from train_jax import config as config_lib
from train_jax import optim, profiling, sharding
from train_jax.step import init_state, make_train_step
from train_jax.task import Task

MODELS = ("vit_b32", "vit_b16", "vit_l14", "siglip_b16", "rn50")
MESHES = ({"data": -1, "fsdp": 8, "tensor": 1}, {"data": -1, "fsdp": 2, "tensor": 4})
BATCH = 256
DIM = 512


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("models", "losses"), help="one of the two tables")
    only = parser.parse_args().only
    if jax.device_count() != 8:
        raise SystemExit("set XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu")
    if only != "losses":
        print(f"Training step, batch {BATCH}, per device:")
        _row("model", "mesh", "parameters", "state and batch", "temporaries", "total", "GFLOP a pair")
        _row(*["---"] * 7)
        for name in MODELS:
            for mesh in MESHES:
                step_plan(name, mesh)
    if only != "models":
        print(f"\nTemporary memory of the softmax loss and its gradient, 8 devices, {DIM} numbers, per device:")
        _row("global batch", "dense", "tiles of 1,024")
        _row(*["---"] * 3)
        for size in (8_192, 32_768, 131_072):
            loss_plans(size)


def _row(*cells) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def step_plan(name: str, sizes: dict) -> None:
    """Compiles the trainer's step for a published size and prints its plan."""
    config = load_config(f"clip/{name}")
    config.data.batch_size, config.model.tile, config.mesh = BATCH, 0, sizes
    config = config_lib.resolve(config)
    m = config.model
    module = model.build(m, m.text.vocab_size, m.text.vocab_size - 1)

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
    with jax.set_mesh(mesh):
        schedules = {}

        def make_tx(params, axes):
            tx, found = optim.make(config.optim, params, config.steps, axes)
            schedules.update(found)
            return tx

        _, abstract, tx = init_state(task, make_tx, mesh, batch, seed=0)
        step = make_train_step(task, tx, mesh, abstract, seed=0, schedules=schedules)
        plan = profiling.memory_plan(step.lower(abstract, batch).compile())
    count = sum(x.size for x in jax.tree.leaves(abstract.params))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    sizes = (_mib(x) for x in (plan.arguments, plan.temporaries, plan.total))
    _row(name, shape, f"{count:,}", *sizes, f"{training(m) * 1e-9:,.0f}")


def loss_plans(size: int) -> None:
    """Temporary memory of the loss and its gradient, dense and in tiles."""
    mesh = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    shapes = [jax.ShapeDtypeStruct((size, DIM), jnp.float32, sharding=sharding.batch_sharding(mesh))] * 2
    found = []
    for function in (loss.softmax_loss, functools.partial(tiled.softmax_loss, tile=1024)):
        gradient = jax.grad(lambda x, y, f=function: f(x, y, jnp.float32(50), jnp.arange(size))[0], argnums=(0, 1))
        with jax.set_mesh(mesh):
            compiled = jax.jit(gradient).lower(*shapes).compile()
        found.append(compiled.memory_analysis().temp_size_in_bytes)
    _row(f"{size:,}", *map(_mib, found))


if __name__ == "__main__":
    main()
