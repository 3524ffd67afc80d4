"""Measures convolutions and their gradients: those of a VQGAN's GAN update at 256 pixels, batch 1, or others.

    python -m benchmarks.convolutions [--batch 1] [--only 256x128x128 …]

GFLOP/s of the forward pass, of the gradients with respect to input and kernel, and of the kernel's gradient by XLA alone.
"""

import argparse
import functools
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.convolutions", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="cases by side x input channels x output channels, such as 256x128x128")
    arguments = parser.parse_args()
    print(f"batch {arguments.batch}, float32, {jax.devices()[0].device_kind} ({platform.machine()}), jax {jax.__version__}")
    print("| map, channels, kernel | forward | input's gradient | kernel's gradient | kernel's gradient, XLA's own |")
    print("| --- | --- | --- | --- | --- |")
    for case in CASES:
        side, inputs, outputs, kernel, stride, _ = case
        if not arguments.only or f"{side}x{inputs}x{outputs}" in arguments.only:
            rates = measure(arguments.batch, *case)
            name = f"{side} x {side}, {inputs} to {outputs}, {kernel} x {kernel}, stride {stride}"
            print("| " + " | ".join([name, *(f"{rate:.0f}" for rate in rates)]) + " |", flush=True)


def measure(batch: int, side: int, inputs: int, outputs: int, window: int, stride: int, padding) -> list[float]:
    """Measures GFLOP/s of the four computations."""
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
    functions = (
        ours,
        lambda x, kernel: jax.vjp(lambda x: ours(x, kernel), x)[1](y)[0],
        lambda x, kernel: jax.vjp(lambda kernel: ours(x, kernel), kernel)[1](y)[0],
        lambda x, kernel: jax.vjp(lambda kernel: lax_own(x, kernel), kernel)[1](y)[0],
    )
    return [operations / best_seconds(jax.jit(function), x, kernel) * 1e-9 for function in functions]


def best_seconds(function: Callable, *arguments: jax.Array, repeats: int = 3) -> float:
    """Measures the least seconds of a call after a first call."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
