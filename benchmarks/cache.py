"""Counts the bytes that sampling one code reads: weights, the caches of prompts, and the caches of images.

    python -m benchmarks.cache [--models 1b3 12b] [--batches 1 16 64] [--compiled] [--memory] [--target h100:1]

For guided images of one prompt in bfloat16. The formula counts each byte once. "compiled" is the cost analysis of the step
that computes the logits of one code, of a few blocks, scaled to all. "Full cache" is the same model with prompts' keys and
values kept for each row, and a cache that is read to its end by every block. The compiler for TPUs also counts copies to
on-chip memory; that for GPUs counts for a GPU that is present only. `--memory` compiles the whole model for the plan of the
last segment's program.
"""

import argparse
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import code_models
from benchmarks.command import main, positive
from benchmarks.results import Row
from nn_jax.code_transformer import UNROLLED, CodeTransformer
from nn_jax.decoding import Sampling
from train_jax.plan.program import place
from train_jax.plan.targets import Target
from vqgan_jax.stage2 import sampling
from vqgan_jax.stage2.plan import abstract_weights

MODELS = ("1b3", "12b")
DTYPE = jnp.bfloat16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=MODELS, choices=code_models.MODELS)
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 16, 64])
    parser.add_argument("--compiled", action="store_true", help="also compile programs, of a few blocks")
    parser.add_argument("--memory", action="store_true", help="compile all blocks for the memory of the last program")
    parser.add_argument("--target", default="fake:1", help="device to compile for, as for train-jax plan: h100:1, v5p:2x2x1")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    target = Target.parse(arguments.target)
    target.set_environment()
    mesh = Mesh(np.array(target.devices()[:1]), ("batch",), axis_types=(AxisType.Auto,))
    for name in arguments.models:
        module = code_models.build(name, DTYPE.dtype.name)
        module = module.clone(blocks={**module.blocks, **UNROLLED})
        for batch in arguments.batches:
            settings = {"model": name, "batch": batch}
            for what, size in count(module, batch):
                yield Row(what, size / 1e9, "GB a code", settings)
            compiled = settings | {"compiled for": target.name}
            for is_full in (False, True) if arguments.compiled else ():
                size = compiled_bytes(module, batch, is_full, mesh)
                name_of_size = "compiled, full cache" if is_full else "compiled"
                yield Row(name_of_size, size / 1e9 if np.isfinite(size) else None, "GB a code", compiled, note="not counted")
            if arguments.memory:
                yield Row("memory of the last program", plan_memory(module, batch, mesh) / 1e9, "GB", compiled)


def count(module: CodeTransformer, batch: int) -> Iterator[tuple[str, float]]:
    """Counts the bytes of a code for a batch of guided images of one prompt by formula."""
    weights = code_models.count_weight_bytes(module, DTYPE)
    cache = code_models.count_cache_bytes(module, DTYPE, 2 * batch, 2)
    full = 2 * DTYPE.dtype.itemsize * module.width * 2 * batch * module.depth * (module.condition_length + module.length)
    head_dim = module.width // module.heads
    yield from (("weights", weights), ("cache", cache), ("full cache", full))
    yield from (("total", weights + cache), ("total with a full cache", weights + full))
    yield "total with an int8 cache", weights + cache * (head_dim + 4) / (2 * head_dim)


def compiled_bytes(module: CodeTransformer, batch: int, is_full: bool, mesh: Mesh) -> float:
    """Returns the bytes that the compiled step reads and writes, in the mean over segments, scaled to all blocks.

    Args:
      is_full: whether prefixes are kept for each row, and blocks are dense and read the cache to its end.
    """
    period = max(len(module.patterns), 1)
    if is_full:
        module, period = module.clone(patterns=("dense",), blocks={**module.blocks, "attention_index": ()}), 1
    ends = [stop for _, stop in sampling.segments(module.length)]

    def measure(depth: int) -> float:
        index = module.blocks["attention_index"][:depth]
        small = module.clone(depth=depth, blocks={**module.blocks, "attention_index": index})
        steps = [compile_step(small, batch, room, is_full, mesh) for room in (ends[-1:] if is_full else ends)]
        return float(np.mean([(step.cost_analysis() or {}).get("bytes accessed", np.nan) for step in steps]))

    one, two = measure(period), measure(2 * period)
    return one + (module.depth / period - 1) * (two - one)


def compile_step(module: CodeTransformer, batch: int, room: int, is_full: bool, mesh: Mesh):
    """Compiles the computation of the logits of one code."""
    prefixes, (_, caches) = abstract_carry(module, batch, room, is_full)
    step = functools.partial(module.apply, method="decode_step")
    codes, index = jax.ShapeDtypeStruct((2 * batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    inputs = place(({"params": abstract_weights(module)}, codes, index, prefixes, tuple(caches)), mesh, P())
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=4).lower(*inputs).compile()


def plan_memory(module: CodeTransformer, batch: int, mesh: Mesh) -> float:
    """Returns the memory of the program of the last segment, by the compiler's plan."""
    programs = sampling.compile_programs(module)
    prefixes, carry = abstract_carry(module, batch, module.length, False)
    size = -(-module.length // sampling.SEGMENTS)
    requests = jax.eval_shape(
        lambda: sampling.Requests(
            jnp.zeros((batch, 3), jnp.uint32), jnp.arange(size), jnp.zeros((batch, size), jnp.int32),
            jnp.zeros((batch, size), bool),
        )
    )  # fmt: skip
    settings = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, Sampling(1.0, 0, 1.0, 3.0)))
    start = jax.ShapeDtypeStruct((), jnp.int32)
    inputs = place((abstract_weights(module), settings, prefixes, carry, requests, start), mesh, P())
    with jax.set_mesh(mesh):
        plan = programs.decode_chunk.lower(*inputs, filtered=True, guided=True).compile().memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def abstract_carry(module: CodeTransformer, batch: int, room: int, is_full: bool):
    """Returns prefixes and carry of `sampling.Programs`, without memory."""
    groups = batch if is_full else 1

    def make():
        prefix = module.bind({}).transformer.empty_caches(groups, module.condition_length)
        caches = list(module.bind({}).transformer.empty_caches(2 * batch, room))
        logits = jnp.zeros((2 * batch, module.num_codes))
        return tuple((cache, cache) for cache in prefix), (logits, caches)

    return jax.eval_shape(make)


if __name__ == "__main__":
    main(rows, add_arguments)
