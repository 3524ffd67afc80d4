"""Compares forward and backward passes of attention in bfloat16: `nn_jax.attention` and JAX's implementations.

    python -m benchmarks.attention [--tokens 16384] [--lengths 50 197 256 1280]

Heads of 64 and of 128 numbers, width 768. What an implementation refuses is noted.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import main, positive
from benchmarks.results import OURS, Row
from benchmarks.timing import size_row, time_call, time_row
from nn_jax.attention import attend

WIDTH, HEAD_DIMS = 768, (64, 128)
LENGTHS = (50, 197, 256, 1280)  # ViT-B/32, ViT-B/16, a prior's 16 x 16 codes, DALL-E's 256 + 1,024


def _ours(q, k, v, causal: bool):
    return attend(q, k, v, causal=causal)


def _jax(q, k, v, causal: bool, implementation: str):
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation)


IMPLEMENTATIONS = {OURS: _ours}
IMPLEMENTATIONS |= {f"JAX's {name}": functools.partial(_jax, implementation=name) for name in ("xla", "cudnn")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=positive, default=16_384, help="tokens of a batch")
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS)
    parser.add_argument("--tiny", action="store_true", help="100 tokens, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    tokens, lengths = (100, (50,)) if arguments.tiny else (arguments.tokens, arguments.lengths)
    cases = list(itertools.product(HEAD_DIMS, lengths, (False, True)))
    with ThreadPoolExecutor(8) as pool:
        programs = list(pool.map(lambda case: _compile(tokens, *case), cases))
    for (head_dim, length, causal), compiled in zip(cases, programs, strict=True):
        settings = {"head": head_dim, "length": length, "causal": "yes" if causal else "no", "tokens": tokens}
        expected = ours = None
        for by, program in compiled.items():
            if isinstance(program, Exception):
                note = f"refused: {type(program).__name__}: {program}".splitlines()[0][:200]
                yield Row("attention, forward and backward", None, "ms", settings, by=by, note=note)
                continue
            shape = (tokens // length, length, WIDTH // head_dim, head_dim)
            inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)]
            values = np.stack([np.asarray(value, np.float32) for value in program(*inputs)])
            seconds = time_call(functools.partial(program, *inputs), 0.05)
            median = statistics.median(seconds)
            expected, ours = (values, median) if by == OURS else (expected, ours)
            ratio = None if by == OURS else median / ours
            yield time_row("attention, forward and backward", seconds, settings, by=by, ratio=ratio)
            yield size_row("temporaries", program.memory_analysis().temp_size_in_bytes, settings, by=by)
            if by != OURS:
                difference = np.linalg.norm(values - expected) / np.linalg.norm(expected)
                yield Row("relative difference from ours", float(difference), "", settings, by=by)


def _compile(tokens: int, head_dim: int, length: int, causal: bool) -> dict[str, jax.stages.Compiled | Exception]:
    """Compiles each implementation; an error where it refuses the device or the shape."""
    x = jax.ShapeDtypeStruct((tokens // length, length, WIDTH // head_dim, head_dim), jnp.bfloat16)
    programs = {}
    for by, attention in IMPLEMENTATIONS.items():
        try:
            program = jax.jit(functools.partial(_output_and_gradients, attention, causal))
            programs[by] = program.lower(x, x, x, x).compile()
        except Exception as error:  # of various classes
            programs[by] = error
    return programs


def _output_and_gradients(attention, causal: bool, q, k, v, cotangent):
    """Returns the output, and the gradients of q, k and v."""
    y, pullback = jax.vjp(functools.partial(attention, causal=causal), q, k, v)
    return y, *pullback(cotangent)


if __name__ == "__main__":
    main(rows, add_arguments)
