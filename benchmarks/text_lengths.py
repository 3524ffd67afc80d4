"""Compares CLIP's loss and gradient with captions padded to 77 tokens and cut to `compute.text_lengths`.

    python -m benchmarks.text_lengths [--batch 32] [--micro-batch 8] [--lengths 16 32 48]

ViT-B/32 on random images and on captions of random tokens, whose lengths are drawn from a log-normal distribution with a
mean of about 15, that of LAION's captions.
"""

import argparse
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import main, positive
from benchmarks.results import OURS, Row
from benchmarks.synthetic import make_batch, make_config
from benchmarks.timing import compare_rates, time_call
from clip_jax import task as clip_task
from train_jax.data.text import open_tokenizer
from train_jax.sharding import unbox


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[16, 32, 48])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    seconds, losses = {}, {}
    for by, lengths in ((OURS, tuple(arguments.lengths)), ("77 tokens", ())):
        with tempfile.TemporaryDirectory() as folder:
            config = make_config("clip", "clip/vit_b32", arguments.dtype, arguments.batch, "none", Path(folder), False)
            config.compute.update({"micro_batch": arguments.micro_batch, "text_lengths": lengths})
            task = clip_task.make(config, Path(folder))
            eos_id = open_tokenizer(Path(folder) / "tokenizer.json", 77).eos_id
        batch = make_batch("clip", config, 0)
        rng = np.random.default_rng(0)
        ends = np.clip(rng.lognormal(np.log(12), 0.55, arguments.batch).astype(int), 4, 76)
        batch["text"] = np.where(np.arange(77) < ends[:, None], rng.integers(1, 500, batch["text"].shape), 0)
        batch["text"][np.arange(len(ends)), ends] = eos_id
        batch = {name: jnp.asarray(x) for name, x in batch.items()}
        params, _ = jax.jit(lambda key, init=task.init, batch=batch: unbox(init(key, batch)))(jax.random.key(0))

        def compute_loss(params, batch, loss=task.loss):
            return loss(params, {}, batch, jax.random.key(1), 0)[0]

        gradient = jax.jit(jax.value_and_grad(compute_loss)).lower(params, batch).compile()
        losses[by] = float(gradient(params, batch)[0])
        seconds[by] = time_call(functools.partial(gradient, params, batch))
    settings = {"model": "ViT-B/32", "batch": arguments.batch, "micro-batch": arguments.micro_batch}
    settings |= {"lengths": " ".join(map(str, arguments.lengths)), "dtype": arguments.dtype}
    yield from compare_rates("training pairs", seconds, arguments.batch, "a second", settings)
    yield Row("mean length of captions", float(ends.mean() + 1), "tokens", settings)
    for by, loss in losses.items():
        yield Row("loss", loss, "", settings, by=by)


if __name__ == "__main__":
    main(rows, add_arguments)
