"""Measures forward and backward passes of attention in bfloat16: `nn_jax.attention` and JAX's implementations.

    python -m benchmarks.accelerator --families attention
"""

import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import median_seconds
from nn_jax.attention import attend

WIDTH, HEAD_DIMS = 768, (64, 128)
LENGTHS = (50, 197, 256, 1280)  # ViT-B/32, ViT-B/16, a prior's 16 x 16 codes, DALL-E's 256 + 1,024


def _ours(q, k, v, causal: bool):
    return attend(q, k, v, causal=causal)


def _jax(q, k, v, causal: bool, implementation: str):
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation)


IMPLEMENTATIONS = {"ours": _ours} | {name: functools.partial(_jax, implementation=name) for name in ("xla", "cudnn")}


def measure(tokens: int, lengths: tuple[int, ...] = LENGTHS) -> Iterator[dict]:
    """Measures seconds and temporary memory of each implementation, and the relative L2 difference from ours."""
    programs = []
    for dim, length, causal in itertools.product(HEAD_DIMS, lengths, (False, True)):
        x = jax.ShapeDtypeStruct((tokens // length, length, WIDTH // dim, dim), jnp.bfloat16)
        for name, attention in IMPLEMENTATIONS.items():
            row = {"what": f"head {dim}, length {length}{', causal' * causal}", "model": name}
            try:
                program = jax.jit(functools.partial(_output_and_gradients, attention, causal))
                programs.append((row, x, program.lower(x, x, x, x)))
            except Exception as error:  # a kernel may refuse a device or a shape
                yield row | {"error": f"{type(error).__name__}: {error}"[:300]}
    with ThreadPoolExecutor(8) as pool:
        compiled = list(pool.map(lambda program: _compile(program[2]), programs))
    for (row, x, _), program in zip(programs, compiled, strict=True):
        if isinstance(program, Exception):
            yield row | {"error": f"{type(program).__name__}: {program}"[:300]}
            continue
        inputs = [jax.random.normal(key, x.shape, x.dtype) for key in jax.random.split(jax.random.key(0), 4)]
        values = np.stack([np.asarray(value, np.float32) for value in program(*inputs)])
        if row["model"] == "ours":
            expected = values
        row["difference"] = float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
        row |= {"temporary_bytes": program.memory_analysis().temp_size_in_bytes, "peak_bytes": None}
        yield row | {"seconds": median_seconds(functools.partial(program, *inputs), 0.05)}


def _output_and_gradients(attention, causal: bool, q, k, v, cotangent):
    """Returns the output, and the gradients of q, k and v."""
    y, pullback = jax.vjp(functools.partial(attention, causal=causal), q, k, v)
    return y, *pullback(cotangent)


def _compile(lowered):
    try:
        return lowered.compile()
    except Exception as error:
        return error
