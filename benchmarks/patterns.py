"""Compares DALL-E's sparse attention with attention under its masks: forward and backward pass of a block's attention.

    python -m benchmarks.patterns [--heads 8] [--batch 1] [--dtype float32]

Shapes are those of the 12-billion model: 256 text tokens, 32 x 32 codes, heads of 64 (arXiv 2102.12092, section 2.4).
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import median_seconds
from nn_jax.attention import attend
from nn_jax.attention_patterns import PATTERNS, attention_mask
from nn_jax.sparse_attention import attend_in_pattern

OPTIONS = {"condition_length": 256, "grid": (32, 32), "window": 11}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.patterns", description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    shape = (arguments.batch, 256 + 32 * 32 - 1, arguments.heads, 64)
    inputs = [jax.random.normal(key, shape, arguments.dtype) for key in jax.random.split(jax.random.key(0), 4)]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.dtype}, q, k and v of {shape}")
    print("| pattern | masked, ms | in its pattern, ms | ratio | temporaries, MiB: masked | in its pattern | difference |")
    print("| --- " * 7 + "|")
    for pattern in PATTERNS[1:]:
        mask = jnp.asarray(attention_mask(pattern, **OPTIONS)[:-1, :-1])[None, None]
        both = (
            functools.partial(attend, mask=mask),
            functools.partial(attend_in_pattern, pattern=pattern, **OPTIONS),
        )
        programs = [jax.jit(functools.partial(_output_and_gradients, f)).lower(*inputs).compile() for f in both]
        values = [np.concatenate([np.ravel(x).astype(np.float32) for x in program(*inputs)]) for program in programs]
        seconds = [median_seconds(functools.partial(program, *inputs)) for program in programs]
        memory = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs]
        difference = np.linalg.norm(values[1] - values[0]) / np.linalg.norm(values[0])
        print(
            f"| {pattern} | {seconds[0] * 1e3:.1f} | {seconds[1] * 1e3:.1f} | {seconds[0] / seconds[1]:.2f} "
            f"| {memory[0]:,.0f} | {memory[1]:,.0f} | {difference:.1e} |"
        )


def _output_and_gradients(attention, q, k, v, cotangent):
    y, pullback = jax.vjp(attention, q, k, v)
    return y, *pullback(cotangent)


if __name__ == "__main__":
    main()
