"""Measures steps of VQGAN+CLIP with f16 and ViT-B/32, for one image and for a batch of images.

    python -m benchmarks.painting_speed [--dtype bfloat16] [--batches 1 8] [--cuts 32] [--pixels 256]

Weights are random. FLOPs are counted in the traced forward passes; the backward pass to the latents costs as much.
"""

import argparse
import itertools
import time
from collections.abc import Iterator

import jax.numpy as jnp

from benchmarks import guided
from benchmarks.command import main, positive
from benchmarks.flops import count_forward_flops
from benchmarks.kernels import kernel_rows
from benchmarks.results import Row
from benchmarks.timing import flops_rows, rate_row, time_call
from vqgan_jax.guided import painting

STEPS = 10  # of a turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8], help="images painted at once")
    parser.add_argument("--cuts", type=positive, default=32)
    parser.add_argument("--pixels", type=positive, default=256)
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    vq, clip = guided.build_models(arguments.dtype, arguments.tiny)
    if arguments.tiny:
        arguments.cuts, arguments.pixels, arguments.batches = 2, 32, (1, 2)
    cuts, side, steps = arguments.cuts, arguments.pixels, 2 if arguments.tiny else STEPS
    flops = count_forward_flops(vq, "decode", (1, *[side // vq.factor] * 2), jnp.int32)
    flops += count_forward_flops(clip, "encode_image", (cuts, *[clip.preprocess.size] * 2, 3), jnp.float32)
    for size in arguments.batches:
        texts = list(itertools.islice(itertools.cycle(guided.PROMPTS), size))
        painter = painting.Painter(vq, clip, guided.make_jobs(arguments, side, texts))
        turn, begun = guided.make_turn(painter, steps), time.perf_counter()
        turn()  # compiles
        settings = {"models": "f16, ViT-B/32", "pixels": side, "cuts": cuts, "dtype": arguments.dtype, "batch": size}
        yield Row("compilation and a turn", time.perf_counter() - begun, "s", settings)
        seconds = [x / steps for x in time_call(turn)]
        yield rate_row("steps of all images together", seconds, size, "steps/s", settings)
        yield from flops_rows("step", seconds, 2 * flops * size, settings)
        if size == 1:
            yield from kernel_rows(f"kernels of {steps} steps", turn, settings)


if __name__ == "__main__":
    main(rows, add_arguments)
