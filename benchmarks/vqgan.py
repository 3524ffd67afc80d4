"""Compares VQGAN f16 at 256 pixels with a textbook step in PyTorch: the same weights, images and precision.

    python -m benchmarks.vqgan [--batch 1] [--rounds 5]         (needs the `peers` extra; otherwise ours only)

Measures reconstructions per second and full GAN updates per second (generator, discriminator, adaptive weight, both
optimisers). Also prints the cost of an update in forward passes of the generator, by the compiler's FLOP count.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from train_jax import config as config_lib
from train_jax import feed, sharding
from train_jax import task as task_lib
from train_jax.prepare import trace_step
from train_jax.weights.layout import flatten, to_peer
from vqgan_jax import model as model_lib
from vqgan_jax.pretrained import taming

LR = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.vqgan", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    arguments = parser.parse_args()
    config = load_config("vqgan/f16_1024")
    config.compute.dtype = arguments.dtype
    config.perceptual = {"type": "none"}
    config.loss.disc_start = 0
    config.augment = {}
    config.ema = {}
    config.data.batch_size = arguments.batch
    config.optim = {"name": "adam", "lr": LR, "schedule": "constant", "clip": 0.0, "args": {"b1": 0.5, "b2": 0.9}}
    config = config_lib.resolve(config)
    shape = (arguments.batch, arguments.size, arguments.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    implementations = {}
    implementations["ours"], params, passes = _build_ours(config, images)
    try:
        implementations["PyTorch"] = _build_torch(config, images, params, arguments.dtype)
    except ImportError as error:
        print(f"the peer is not installed ({error}): pip install -e '.[peers]'")
    _check_agreement(implementations)
    rates = _measure_rates(implementations, arguments.rounds, arguments.batch)
    machine = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    print(
        f"f16-1024 at {arguments.size} px, batch {arguments.batch}, {arguments.dtype}, {machine}, jax {jax.__version__}; "
        "images per second"
    )
    print("| " + " | ".join(["", *rates, "ours / PyTorch"]) + " |")
    print("| " + " | ".join(["---"] * (len(rates) + 2)) + " |")
    for task in ("reconstructions", "GAN updates"):
        cells = [f"{rates[name][task]:.3f}" for name in rates]
        ratio = rates["ours"][task] / rates["PyTorch"][task] if "PyTorch" in rates else float("nan")
        print("| " + " | ".join([task, *cells, f"{ratio:.2f}"]) + " |")
    print(f"the compiled update costs {passes}")


Implementation = dict[str, Callable[[], np.ndarray]]


def _build_ours(config, images) -> tuple[Implementation, dict, str]:
    task = task_lib.module(config).make(config, None)
    module = model_lib.build(config.model)
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        batch = feed.to_device({"image": images}, sharding.batch_sharding(mesh))
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
        plan, traced = trace_step(config, task, mesh, shapes, {})
        step, state = traced.lower().compile(), plan.create()
        params = jax.tree.map(np.asarray, nn.unbox(state.params["generator"]))

    x = images.astype(np.float32) / 127.5 - 1

    def forward(params, x):
        return module.apply({"params": params}, x, method="__call__", rngs={"dropout": jax.random.key(0)})

    compiled = jax.jit(forward).lower(params, x).compile()
    reconstruct = jax.jit(
        lambda p, x: module.apply({"params": p}, module.apply({"params": p}, x, method="encode"), method="decode")
    )
    on_device = jax.device_put((params, jnp.asarray(x)))
    flops = [program.cost_analysis()["flops"] for program in (step, compiled)]
    passes = f"{flops[0] / flops[1]:.2f} forward passes of the generator (forward and backward alone: 3)"

    def update():
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
        return np.asarray(jax.block_until_ready(metrics["loss_discriminator"]))

    return {"reconstructions": lambda: np.asarray(reconstruct(*on_device)), "GAN updates": update}, params, passes


def _build_torch(config, images, params, dtype: str) -> Implementation:
    import torch

    from benchmarks import textbook_vqgan

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    model = textbook_vqgan.VQGAN(config.model)
    weights = to_peer(flatten(params), taming.build_entries(config.model.to_dict()))
    model.load_state_dict({name: torch.from_numpy(np.array(x, np.float32)) for name, x in weights.items()})
    discriminator = textbook_vqgan.discriminator(config.discriminator.channels, config.discriminator.layers)
    model, discriminator = model.to(device), discriminator.to(device)
    trainer = textbook_vqgan.Trainer(model, discriminator, LR, config.loss.weight)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1).to(device)
    precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def reconstruct():
        with torch.no_grad(), precision:
            return model(x)[0].float().cpu().numpy().transpose(0, 2, 3, 1)

    def update():
        with precision:
            return trainer.update(x).cpu().numpy()

    return {"reconstructions": reconstruct, "GAN updates": update}


def _check_agreement(implementations: dict[str, Implementation]) -> None:
    """Checks that both implementations compute the same reconstructions."""
    if "PyTorch" in implementations:
        a, b = (implementations[name]["reconstructions"]() for name in ("ours", "PyTorch"))
        # Codes may differ at ties, which changes a patch.
        share = np.mean(np.abs(a - b) < 1e-2)
        if share < 0.95:
            raise SystemExit(f"ours and PyTorch agree in only {share:.0%} of the pixels")


def _measure_rates(implementations: dict[str, Implementation], rounds: int, batch: int) -> dict[str, dict[str, float]]:
    seconds = {name: {task: [] for task in functions} for name, functions in implementations.items()}
    for round_index in range(rounds + 1):  # the first warms up
        for name, functions in implementations.items():
            for task, run in functions.items():
                start = time.perf_counter()
                run()
                if round_index:
                    seconds[name][task].append(time.perf_counter() - start)
    return {
        n: {task: batch / statistics.median(t) for task, t in functions.items()} for n, functions in seconds.items()
    }


if __name__ == "__main__":
    main()
