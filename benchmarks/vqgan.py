"""Compares VQGAN f16 at 256 pixels with a textbook step in PyTorch: the same weights, images and precision.

    python -m benchmarks.vqgan [--batch 1] [--rounds 5]         (needs the `peers` extra; otherwise ours only)

Measures reconstructions and full GAN updates (generator, discriminator, adaptive weight, both optimisers), in turns, and the
cost of an update in forward passes of the generator, by the compiler's FLOP count (forward and backward alone: 3).
"""

import argparse
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.peers import name_peer, skipped_if_missing
from benchmarks.results import OURS, Row
from benchmarks.synthetic import TINY_VQGAN
from benchmarks.timing import compare_rates, time_in_turns
from train_jax import config as config_lib
from train_jax import feed, sharding
from train_jax import task as task_lib
from train_jax.prepare import trace_step
from train_jax.weights.layout import flatten, to_peer
from vqgan_jax import model as model_lib
from vqgan_jax.pretrained import taming

LR = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=positive, default=256, help="side of the images in pixels")
    parser.add_argument("--tiny", action="store_true", help="use a toy model, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    config = load_config("vqgan/f16_1024")
    config.compute.dtype = arguments.dtype
    config.perceptual = {"type": "none"}
    config.loss.disc_start = 0
    config.augment = {}
    config.ema = {}
    config.data.batch_size = arguments.batch
    config.optim = {"name": "adam", "lr": LR, "schedule": "constant", "clip": 0.0, "args": {"b1": 0.5, "b2": 0.9}}
    if arguments.tiny:
        config.model.update(TINY_VQGAN)
    config = config_lib.resolve(config)
    size = config.model.resolution if arguments.tiny else arguments.size
    images = np.random.default_rng(0).integers(0, 256, (arguments.batch, size, size, 3), np.uint8)

    implementations = {}
    implementations[OURS], params, passes = _build_ours(config, images)
    with skipped_if_missing():
        implementations |= _build_torch(config, images, params, arguments.dtype)
    _check_agreement(implementations)
    contestants = {(by, task): run for by, runs in implementations.items() for task, run in runs.items()}
    times = time_in_turns(contestants, arguments.rounds)
    settings = {"model": "f16-1024", "pixels": size, "batch": arguments.batch, "dtype": arguments.dtype}
    for task in ("reconstructions", "GAN updates"):
        seconds = {by: times[by, task] for by in implementations}
        yield from compare_rates(task, seconds, arguments.batch, "images/s", settings)
    yield Row("cost of the compiled update", passes, "forward passes of the generator", settings)


Implementation = dict[str, Callable[[], np.ndarray]]


def _build_ours(config, images) -> tuple[Implementation, dict, float]:
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

    def update():
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
        return np.asarray(jax.block_until_ready(metrics["loss_discriminator"]))

    runs = {"reconstructions": lambda: np.asarray(reconstruct(*on_device)), "GAN updates": update}
    return runs, params, flops[0] / flops[1]


def _build_torch(config, images, params, dtype: str) -> dict[str, Implementation]:
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

    return {name_peer("PyTorch", torch): {"reconstructions": reconstruct, "GAN updates": update}}


def _check_agreement(implementations: dict[str, Implementation]) -> None:
    """Checks that both implementations compute the same reconstructions."""
    ours, *theirs = (runs["reconstructions"]() for runs in implementations.values())
    for images in theirs:
        # Codes may differ at ties, which changes a patch.
        share = np.mean(np.abs(ours - images) < 1e-2)
        if share < 0.95:
            raise SystemExit(f"ours and PyTorch agree in only {share:.0%} of the pixels")


if __name__ == "__main__":
    main(rows, add_arguments)
