"""Measures convolutions and their gradients: those of a VQGAN's GAN update at 256 pixels, batch 1, or others.

    python -m benchmarks.convolutions [--batch 1] [--only 256x128x128 …]

GFLOP/s in float32 of the forward pass, of the gradients with respect to input and kernel, and of the kernel's gradient by
XLA alone.
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.command import main, positive
from benchmarks.results import Row
from benchmarks.timing import rate_row, time_in_turns
from nn_jax.convolution import convolve

# Side of the input, input and output channels, side of the kernel, stride, padding.
_SAME, _AFTER = ((1, 1),) * 2, ((0, 1),) * 2
CASES = (
    (256, 3, 128, 3, 1, _SAME),
    (256, 128, 128, 3, 1, _SAME),
    (256, 128, 3, 3, 1, _SAME),
    (256, 128, 128, 3, 2, _AFTER),
    (128, 256, 128, 3, 1, _SAME),
    (128, 256, 128, 1, 1, ((0, 0),) * 2),
    (64, 256, 256, 3, 1, _SAME),
    (32, 256, 256, 3, 1, _SAME),
    (16, 512, 512, 3, 1, _SAME),
    (128, 64, 128, 4, 2, _SAME),
    (32, 256, 512, 4, 1, _SAME),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--only", nargs="+", help="cases by side x input channels x output channels, such as 256x128x128")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for case in CASES:
        side, inputs, outputs, kernel, stride, _ = case
        if not arguments.only or f"{side}x{inputs}x{outputs}" in arguments.only:
            name = f"{side} x {side}, {inputs} to {outputs}, {kernel} x {kernel}, stride {stride}"
            yield from measure(name, arguments.batch, arguments.rounds, *case)


def measure(
    convolution: str, batch: int, rounds: int, side: int, inputs: int, outputs: int, window: int, stride: int, padding
) -> Iterator[Row]:
    """Measures the four computations."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((batch, side, side, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((window, window, inputs, outputs)), jnp.float32)
    ours = functools.partial(convolve, strides=(stride, stride), padding=padding)
    dimensions = ("NHWC", "HWIO", "NHWC")
    lax_own = functools.partial(
        lax.conv_general_dilated, window_strides=(stride, stride), padding=padding, dimension_numbers=dimensions
    )
    y = ours(x, kernel)
    operations = 2 * y.size * window**2 * inputs
    functions = {
        "forward": ours,
        "input's gradient": lambda x, kernel: jax.vjp(lambda x: ours(x, kernel), x)[1](y)[0],
        "kernel's gradient": lambda x, kernel: jax.vjp(lambda kernel: ours(x, kernel), kernel)[1](y)[0],
        "kernel's gradient, XLA's own": lambda x, kernel: jax.vjp(lambda kernel: lax_own(x, kernel), kernel)[1](y)[0],
    }
    for name, function in functions.items():
        (seconds,) = time_in_turns({name: functools.partial(jax.jit(function), x, kernel)}, rounds).values()
        yield rate_row(name, seconds, operations * 1e-9, "GFLOP/s", {"convolution": convolution, "batch": batch})


if __name__ == "__main__":
    main(rows, add_arguments)
