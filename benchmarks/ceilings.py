"""Measures achievable rates of the device: matrix products [n, n] x [n, n], and a copy of 4 n^2 float32 numbers.

    python -m benchmarks.ceilings [--n 8192]
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.command import main, positive
from benchmarks.results import Row
from benchmarks.timing import rate_row, time_call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n", type=positive, default=8192)
    parser.add_argument("--tiny", action="store_true", help="n = 256, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    n = 256 if arguments.tiny else arguments.n
    x, y = (jax.random.normal(jax.random.key(i), (4 * n, n)) for i in range(2))
    for dtype in ("bfloat16", "float32"):
        product = functools.partial(jax.jit(jnp.matmul), x[:n].astype(dtype), y[:n].astype(dtype))
        yield rate_row("matrix product", time_call(product), 2e-12 * n**3, "TFLOP/s", {"n": n, "dtype": dtype})
    seconds = time_call(functools.partial(jax.jit(jnp.copy), x))
    yield rate_row("copy, read and written", seconds, 2e-9 * x.nbytes, "GB/s", {"n": n})


if __name__ == "__main__":
    main(rows, add_arguments)
