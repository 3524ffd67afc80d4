"""Counts the bytes that sampling one code reads: weights, the caches of prompts, and the caches of images.

    python -m benchmarks.cache [--models 1b3 12b] [--batches 1 16 64] [--compiled] [--memory] [--target h100:1]

The formula counts each byte once. "compiled" is the cost analysis of the step that computes the logits of one code, of a few
blocks, scaled to all. "Full cache" is the same model with prompts' keys and values kept for each row, and a cache that is
read to its end by every block. The compiler for TPUs also counts copies to on-chip memory; that for GPUs counts for a GPU
that is present only. `--memory` compiles the whole model and prints the plan of the last segment's program.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from benchmarks.dalle import MODELS
from dalle_jax.captions import CharBpeCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.attention_patterns import attended_codes
from nn_jax.code_transformer import CodeTransformer, shapes
from nn_jax.decoding import Sampling
from train_jax.compute import TransformerCompute
from train_jax.plan.program import place
from train_jax.plan.targets import Target
from vqgan_jax.stage2 import model as model_lib
from vqgan_jax.stage2 import sampling
from vqgan_jax.stage2.plan import abstract_weights

GB, BFLOAT16 = 1e9, 2
SPARSE = ("row", "column", "row", "row")
SIZES = {  # options, numbers of text tokens and of codes of an image
    "1b3": (MODELS["1b3"] | {"positions": "learned"}, 64, (16, 16)),
    "12b": (
        {"width": 3968, "depth": 64, "heads": 62, "text_size": 16_384, "num_codes": 8192, "vocabulary": "joint"}
        | {"attention": SPARSE, "last_attention": "conv"},
        256,
        (32, 32),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cache", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--compiled", action="store_true", help="also compile programs, of a few blocks")
    parser.add_argument("--memory", action="store_true", help="compile all blocks and print the memory of the last program")
    parser.add_argument("--target", default="fake:1", help="device to compile for, as for train-jax plan: h100:1, v5p:2x2x1")
    arguments = parser.parse_args()
    target = Target.parse(arguments.target)
    target.set_environment()
    arguments.mesh = Mesh(np.array(target.devices()[:1]), ("batch",), axis_types=(AxisType.Auto,))
    print(f"bfloat16, guided, one prompt; compiled for {target.name}, jax {jax.__version__}\n")
    header = ["model", "batch", "weights", "cache", "full cache", "total", "with a full cache", "int8 cache", "compiled"]
    header += ["compiled, full cache", "memory"]
    print("GB a code\n\n| " + " | ".join(header) + " |\n| " + " | ".join(["---"] * len(header)) + " |")
    for name in arguments.models:
        module = build_module(name)
        for batch in arguments.batches:
            print(f"| {name} | {batch} | " + " | ".join(count(module, batch, arguments)) + " |", flush=True)


def build_module(name: str) -> CodeTransformer:
    """Builds a model of `SIZES`."""
    options, text, grid = SIZES[name]
    options = dict(options)
    text_size, num_codes = options.pop("text_size"), options.pop("num_codes")
    options |= {"text_length": text}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())  # unused, since prompts are token ids
    captions = CharBpeCaptions(bpe, length=text, vocabulary_size=text_size, pad=0)
    compute = TransformerCompute(dtype="bfloat16")
    module = model_lib.build(DALLEOptions.parse(options, "model"), captions, num_codes, grid, compute)
    return module.clone(blocks={**module.blocks, "scan": False, "remat": "none"})


def count(module: CodeTransformer, batch: int, arguments: argparse.Namespace) -> list[str]:
    """Counts the bytes of a code for a batch of guided images of one prompt: by formula, and of compiled programs."""
    table = module.condition_size + module.num_codes
    weights = BFLOAT16 * (sum(np.prod(s) for s in leaves(shapes(module))) - table * module.width)
    token = 2 * BFLOAT16 * module.width * 2 * batch  # keys and values of one token in all rows of one block
    cache = sum(tokens * token for tokens in read_tokens(module)) + 2 * module.condition_length * token * module.depth / (
        2 * batch
    )
    full = module.depth * token * (module.condition_length + module.length)
    head_dim = module.width // module.heads
    int8 = weights + cache * (head_dim + 4) / (2 * head_dim)
    cells = [weights, cache, full, weights + cache, weights + full, int8]
    if arguments.compiled:
        cells += [compiled_bytes(module, batch, is_full, arguments.mesh) for is_full in (False, True)]
    cells = [f"{x / GB:.2f}" for x in cells] + ["not compiled"] * (8 - len(cells))
    memory = f"{plan_memory(module, batch, arguments.mesh) / GB:.1f} GB" if arguments.memory else "not compiled"
    return [*cells, memory]


def leaves(tree) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple))


def read_tokens(module: CodeTransformer) -> list[float]:
    """Returns the mean number of tokens of its own image that a code reads, for each block."""
    ends = [stop for start, stop in sampling.segments(module.length) for _ in range(start, stop)]
    per_pattern = []
    for pattern in module.patterns:
        attended = attended_codes(pattern, module.grid, module.conv_window)
        per_pattern.append(float(np.mean(ends)) if attended is None else float(attended.shape[1]))
    return [per_pattern[index] for index in module.blocks["mask_index"] or (0,) * module.depth]


def compiled_bytes(module: CodeTransformer, batch: int, is_full: bool, mesh: Mesh) -> float:
    """Returns the bytes that the compiled step reads and writes, in the mean over segments, scaled to all blocks.

    Args:
      is_full: whether prefixes are kept for each row, and blocks are dense and read the cache to its end.
    """
    period = max(len(module.patterns), 1)
    if is_full:
        module, period = module.clone(patterns=("dense",), blocks={**module.blocks, "mask_index": ()}), 1
    ends = [stop for _, stop in sampling.segments(module.length)]

    def measure(depth: int) -> float:
        index = module.blocks["mask_index"][:depth]
        small = module.clone(depth=depth, blocks={**module.blocks, "mask_index": index})
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
    main()
