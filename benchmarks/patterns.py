"""Compares DALL-E's sparse attention with attention under its masks: forward and backward pass of a block's attention.

    python -m benchmarks.patterns [--heads 8] [--batch 1] [--dtype float32]

Shapes are those of the 12-billion model: 256 text tokens, 32 x 32 codes, heads of 64 (arXiv 2102.12092, section 2.4).
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import main, positive
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, size_row, time_call
from nn_jax.attention import attend
from nn_jax.attention_patterns import PATTERNS, attention_mask
from nn_jax.sparse_attention import attend_in_pattern

OPTIONS = {"condition_length": 256, "grid": (32, 32), "window": 11}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--heads", type=positive, default=8)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    shape = (arguments.batch, 256 + 32 * 32 - 1, arguments.heads, 64)
    inputs = [jax.random.normal(key, shape, arguments.dtype) for key in jax.random.split(jax.random.key(0), 4)]
    for pattern in PATTERNS[1:]:
        mask = jnp.asarray(attention_mask(pattern, **OPTIONS)[:-1, :-1])[None, None]
        both = {
            OURS: functools.partial(attend_in_pattern, pattern=pattern, **OPTIONS),
            "under a mask": functools.partial(attend, mask=mask),
        }
        gradients = {by: jax.jit(functools.partial(_output_and_gradients, f)) for by, f in both.items()}
        programs = {by: function.lower(*inputs).compile() for by, function in gradients.items()}
        values = [np.concatenate([np.ravel(x).astype(np.float32) for x in run(*inputs)]) for run in programs.values()]
        seconds = {by: time_call(functools.partial(program, *inputs)) for by, program in programs.items()}
        settings = {"pattern": pattern, "heads": arguments.heads, "batch": arguments.batch, "dtype": arguments.dtype}
        yield from compare_rates("attention, forward and backward", seconds, 1, "calls/s", settings)
        for by, program in programs.items():
            yield size_row("temporaries", program.memory_analysis().temp_size_in_bytes, settings, by=by)
        difference = np.linalg.norm(values[1] - values[0]) / np.linalg.norm(values[1])
        yield Row("relative difference of outputs and gradients", float(difference), "", settings)


def _output_and_gradients(attention, q, k, v, cotangent):
    y, pullback = jax.vjp(attention, q, k, v)
    return y, *pullback(cotangent)


if __name__ == "__main__":
    main(rows, add_arguments)
