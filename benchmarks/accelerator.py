"""Measures training, sampling, painting and attention of all families on one accelerator at published sizes.

    python -m benchmarks.accelerator [--families clip,vqgan,dalle,prior,sampling,painting] [--json FILE] [--tiny]
    python -m benchmarks.accelerator --cases clip:clip/vit_b16:bfloat16:512:none

The first rows are the achievable rates of the device: matrix products of 8192 x 8192 x 8192 and a copy. Then follow the
trainer's step, the sampler and the painter, with random weights and synthetic data on the device. Each case runs in its own
process, so that peak memory is per case. FLOPs of transformers are computed in closed form, without recomputation; FLOPs of
VQGAN are counted in the traced program. MFU is relative to the device's bfloat16 peak, also in float32, for which GPUs use
TF32. All families take about 15 minutes on one H100. Without an accelerator, and with `--tiny`, toy models are used.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import attention, guided, synthetic
from benchmarks.dalle import GRID, MODELS, TEXT
from benchmarks.timing import (
    compute_rates,
    count_flops,
    count_forward_flops,
    measure_ceilings,
    median_seconds,
    trace_kernels,
)
from dalle_jax.captions import CharBpeCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.code_transformer import unroll_for_decoding
from nn_jax.decoding import Sampling
from nn_jax.mixed_precision import round_weights
from train_jax import inference, prepare, profiling, sharding
from train_jax import task as task_lib
from train_jax.compute import TransformerCompute
from vqgan_jax.guided import painting
from vqgan_jax.stage2 import model as stage2_model
from vqgan_jax.stage2 import sampling

CASES = (  # family, config, dtype, batch size (sampling and painting: the largest), remat policy
    "attention:::16384",
    *("clip:clip/vit_b32:bfloat16:2048:dots", "clip:clip/vit_b32:float32:1024:dots"),
    *("clip:clip/vit_b16:bfloat16:1024:dots", "clip:clip/vit_b16:float32:512:dots"),
    *("dalle:dalle/mindalle_1b3:bfloat16:64:full", "dalle:dalle/mindalle_1b3:float32:32:full"),
    *("vqgan:vqgan/f16_1024:bfloat16:32", "vqgan:vqgan/f16_1024:float32:16"),
    *("sampling:1b3:bfloat16:64", "sampling:1b3:float32:64", "painting:f16_1024:bfloat16:8", "painting:f16_1024:float32:8"),
    *("prior:vqgan/prior_digits:bfloat16:64:none", "prior:vqgan/prior_digits:float32:64:none"),
)
COLUMNS = {  # key of a row -> heading, factor and format in tables
    "parameters": ("parameters", 1, ",.0f"),
    "compile_seconds": ("compile, s", 1, ".0f"),
    "seconds": ("ms", 1e3, ",.2f"),
    "per_second": ("a second", 1, ",.1f"),
    "peak_bytes": ("peak, GiB", 2**-30, ".1f"),
    "temporary_bytes": ("temporaries, MiB", 2**-20, ",.0f"),
    "flops_per_second": ("TFLOP/s", 1e-12, ".1f"),
    "mfu": ("MFU, %", 100, ".1f"),
    "bandwidth": ("of the copy's bandwidth, %", 100, ".0f"),
    "difference": ("difference", 1, ".0e"),
}


class Case(NamedTuple):
    family: str
    model: str = ""
    dtype: str = ""
    batch: str = "0"
    remat: str = ""


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("--families", default="attention,clip,dalle,vqgan,sampling,painting,prior")
    parser.add_argument("--cases", nargs="+", metavar="FAMILY:CONFIG:DTYPE:BATCH:REMAT", help="cases, instead of --families")
    parser.add_argument("--json", metavar="FILE", help="output file for all numbers and kernels")
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    chosen = arguments.cases or [text for text in CASES if text.split(":")[0] in arguments.families.split(",")]
    begun, rows, tiny = time.monotonic(), [], arguments.tiny
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache  # shares the program that initialises weights
        for case in (Case(*text.split(":")) for text in ("ceilings", *chosen)):
            for row in run_case(case, tiny):
                tiny |= row.get("platform") == "cpu"
                if "bytes" in row:
                    row["bandwidth"] = row["bytes"] / row["seconds"] / rows[2]["bytes_per_second"]
                rows.append(case._asdict() | row | {"at": round(time.monotonic() - begun)})
                print({name: x for name, x in rows[-1].items() if x and name != "kernels"}, flush=True)
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(rows, indent=1))
    for family, group in itertools.groupby(rows, lambda row: row["family"]):
        print_table(f"{family}{' of toy models' * tiny}", list(group))


def print_table(family: str, rows: list[dict]) -> None:
    """Prints the table of a family."""
    columns = {key: x for key, x in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    print(f"\n| {' | '.join([family, *(heading for heading, _, _ in columns.values())])} |")
    print("| --- " * (len(columns) + 1) + "|")
    for row in rows:
        names = (str(row[key]) for key in ("what", "model", "dtype", "batch", "remat") if row.get(key))
        cells = [f"{row[k] * factor:{form}}" if row.get(k) is not None else "" for k, (_, factor, form) in columns.items()]
        print(f"| {' | '.join([', '.join(names), *cells])} | {row.get('error', '')[:90]}")


def run_case(case: Case, tiny: bool) -> Iterator[dict]:
    """Yields the rows of a case, measured in a separate process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.attention", "benchmarks.dalle", "benchmarks.synthetic"])  # imported once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_case, args=(case, tiny, sender))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        yield from iter(receiver.recv, None)
    process.join()
    if process.exitcode:
        yield {"error": f"the process ended with code {process.exitcode}"}


def measure_case(case: Case, tiny: bool, sender) -> None:
    try:
        tiny |= jax.default_backend() == "cpu"
        for row in MEASURED.get(case.family, measure_training)(case, tiny):
            peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            sender.send({"peak_bytes": peak} | row)
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-6000:]})


def measure_training(case: Case, tiny: bool) -> Iterator[dict]:
    """Measures updates by the trainer's step."""
    size = 4 if tiny else int(case.batch)
    with tempfile.TemporaryDirectory() as folder:
        config = synthetic.make_config(case.family, case.model, case.dtype, size, case.remat, Path(folder), tiny)
        task = task_lib.module(config).make(config, Path(folder))
        mesh = sharding.make_mesh(config.mesh)
        batch = jax.device_put(synthetic.make_batch(case.family, config, 4 if tiny else 16), sharding.batch_sharding(mesh))
        begun = time.perf_counter()
        plan, traced = prepare.trace_step(config, task, mesh, batch, {})
        with jax.set_mesh(mesh):
            abstract, compiled = plan.abstract, traced.lower().compile()
            row = {"compile_seconds": time.perf_counter() - begun, "planned": profiling.memory_plan(compiled).needed}
            row["parameters"] = sum(x.size for x in jax.tree.leaves(abstract.params))
            flops = task.flops * size if task.flops else count_flops(traced.jaxpr)
            state, metrics = plan.create(), {}

            def update():
                nonlocal state, metrics
                state, metrics = compiled(state, batch)
                return metrics

            row |= compute_rates(median_seconds(update), size, flops)
            yield row | {name: float(metrics[name]) for name in ("loss", "skipped")} | trace_kernels(update)


def measure_sampling(case: Case, tiny: bool) -> Iterator[dict]:
    """Measures sampling of codes for one prompt by prefill and scan, as in `dalle_jax.load(…).draw`, also with top-p.

    Bytes are a lower bound of memory reads: weights in the compute dtype and the filled part of the cache, once per code.
    """
    options, length, sizes = dict(MODELS[case.model]), *((8, (1, 2)) if tiny else (GRID[0] * GRID[1], (1, 16, 64)))
    text_size, codes = options.pop("text_size"), options.pop("num_codes")
    config = DALLEOptions(**options | (synthetic.TINY if tiny else {}) | {"text_length": TEXT, "positions": "learned"})
    captions = CharBpeCaptions(tokenizers.Tokenizer(tokenizers.models.BPE()), length=TEXT, vocabulary_size=text_size, pad=0)
    module = stage2_model.build(config, captions, codes, GRID, TransformerCompute(dtype=case.dtype))
    mesh = jax.tree.leaves(inference.on_devices(np.zeros(1)))[0].sharding.mesh
    replicated, sharded = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    ids = jax.device_put(np.random.default_rng(0).integers(0, text_size, (1, TEXT)).astype(np.int32), replicated)

    def init(key):
        return nn.unbox(module.init(key, ids, jnp.zeros((1, 2), jnp.int32))["params"])

    params = jax.jit(init, out_shardings=replicated)(jax.random.key(0))
    module, params = unroll_for_decoding(module, params)
    programs = sampling.compile_programs(module)
    count = sum(x.size for x in jax.tree.leaves(params)) - (2 * text_size + codes) * config.width  # parameters used per code
    params = round_weights(params, case.dtype)
    runs = [("", size) for size in sizes] + [("top-p 0.9", sizes[-1])]
    none = jax.device_put(np.zeros((1, 0), np.int32), replicated)
    prefilled = programs.prefill(params, ids, none)

    def prepare_run(what: str, size: int):
        rows, seeds = np.zeros(size, np.int32), np.arange(3 * size, dtype=np.uint32).reshape(size, 3)
        rows, seeds = jax.device_put((rows, seeds), sharded)
        groups = jax.device_put(np.zeros(mesh.size, np.int32), sharded)
        settings = Sampling(top_p=np.float32(0.9 if what.startswith("top") else 1))
        limits = {"filtered": what.startswith("top"), "guided": False}

        def request(start: int, stop: int) -> sampling.Requests:
            zeros = jax.device_put(np.zeros((size, stop - start), np.int32), sharded)
            return sampling.Requests(seeds, np.arange(start, stop), zeros, zeros.astype(bool))

        parts = [(start, stop, request(start, stop)) for start, stop in sampling.segments(length)]
        with jax.set_mesh(mesh):
            begun, compiled = time.perf_counter(), []
            prefixes, carry = programs.assign(prefilled, rows, groups, None)
            for start, stop, requests in parts:
                shapes = jax.eval_shape(
                    lambda carry, stop=stop: (carry[0], [cache.grow(stop) for cache in carry[1]]), carry
                )
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded), shapes)
                inputs = params, settings, prefixes, shapes, requests, jnp.int32(start)
                compiled.append(programs.decode_chunk.lower(*inputs, **limits).compile())

        def draw_codes():
            with jax.set_mesh(mesh):
                prefixes, carry = programs.assign(programs.prefill(params, ids, none), rows, groups, None)
                for decode, (start, stop, requests) in zip(compiled, parts, strict=True):
                    sampling.make_room(carry[1], stop)
                    codes, _, carry = decode(params, settings, prefixes, carry, requests, jnp.int32(start))
                return codes

        return what, size, time.perf_counter() - begun, draw_codes

    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(prepare_run, *zip(*runs, strict=True)))
    for what, size, compile_seconds, draw_codes in runs:
        cache = 2 * config.depth * config.width * (TEXT + length / 2 * size)
        row = {"what": what, "batch": size, "compile_seconds": compile_seconds}
        row["bytes"] = jnp.dtype(case.dtype).itemsize * (count + cache) * length
        row |= compute_rates(median_seconds(draw_codes), size * length, 2 * count * size * length)
        yield row | (trace_kernels(draw_codes) if size == sizes[-1] else {})


def measure_painting(case: Case, tiny: bool) -> Iterator[dict]:
    """Measures steps of VQGAN+CLIP with ViT-B/32 and 32 cuts, for one image and for a batch of images."""
    vq, clip = guided.build_models(case.dtype, tiny)
    cuts, side, steps = (2, 32, 2) if tiny else (32, 256, 10)
    flops = count_forward_flops(vq, "decode", (1, *[side // vq.factor] * 2), jnp.int32)
    flops += count_forward_flops(clip, "encode_image", (cuts, *[clip.preprocess.size] * 2, 3), jnp.float32)
    for size in (1, 2 if tiny else int(case.batch)):
        texts = list(itertools.islice(itertools.cycle(guided.PROMPTS), size))
        painter = painting.Painter(vq, clip, guided.make_jobs(argparse.Namespace(cuts=cuts), side, texts))
        turn, begun = guided.make_turn(painter, steps), time.perf_counter()
        turn()  # compiles
        row = {"batch": size, "compile_seconds": time.perf_counter() - begun}
        row |= compute_rates(median_seconds(turn) / steps, size, 2 * flops * size)  # backward pass to the latents only
        yield row | (trace_kernels(turn) if size == 1 else {})


MEASURED = {
    "ceilings": lambda case, tiny: measure_ceilings(512 if tiny else 8192),
    "attention": lambda case, tiny: attention.measure(100, (50,)) if tiny else attention.measure(int(case.batch)),
    "sampling": measure_sampling,
    "painting": measure_painting,
}

if __name__ == "__main__":
    main()
