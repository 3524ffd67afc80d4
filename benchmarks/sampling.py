"""Measures sampling of an image's codes for one prompt, as in `dalle_jax.load(…).draw`, and its share of the bandwidth.

    python -m benchmarks.sampling [--model 1b3] [--dtype bfloat16] [--batches 1 16 64]

Prefill and scans over codes; the last batch also with top-p, and traced. The share is of the peak bandwidth of the device's
memory, for the bytes that must be read: weights and the caches that codes attend to (`benchmarks.cache`), once a code.
Batches are rounded up to a multiple of the devices.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import code_models
from benchmarks.command import main, positive
from benchmarks.kernels import kernel_rows
from benchmarks.results import Row
from benchmarks.timing import flops_rows, rate_row, round_up_to_devices, time_call
from nn_jax.code_transformer import unroll_for_decoding
from nn_jax.decoding import Sampling
from nn_jax.mixed_precision import round_weights
from train_jax import inference, profiling
from vqgan_jax.stage2 import sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="1b3", choices=("72m", "1b3"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 16, 64])
    parser.add_argument("--bandwidth", type=float, help="peak bandwidth in GB/s (default: that of a known device)")
    parser.add_argument("--tiny", action="store_true", help="sample 2 codes of a toy model, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    dtype = arguments.dtype
    batches = sorted({round_up_to_devices(size) for size in ((1,) if arguments.tiny else arguments.batches)})
    bandwidth = 1e9 * (arguments.bandwidth or 0) or profiling.bandwidth_of_kind(jax.devices()[0].device_kind)
    module = code_models.build(arguments.model, dtype, arguments.tiny)
    length = 2 if arguments.tiny else module.length
    weight_bytes = code_models.count_weight_bytes(module, dtype)
    flops = 2 * weight_bytes / jnp.dtype(dtype).itemsize  # of a code, without attention
    sampler = Sampler(module, length)
    runs = [(batch, False) for batch in batches] + [(batches[-1], True)]
    with ThreadPoolExecutor(len(runs)) as pool:
        prepared = list(pool.map(lambda run: sampler.prepare(*run), runs))
    for (batch, filtered), (compile_seconds, draw_codes) in zip(runs, prepared, strict=True):
        settings = {"model": arguments.model, "dtype": dtype, "batch": batch, "top-p": 0.9 if filtered else 1}
        seconds = time_call(draw_codes)
        yield rate_row("codes", seconds, batch * length, "codes/s", settings)
        yield rate_row("images", seconds, batch * length / module.length, "images/s", settings)
        yield from flops_rows("sampling", seconds, flops * batch * length, settings)
        if bandwidth:
            share = batch // jax.local_device_count()  # of a device, which reads all weights
            size = length * (weight_bytes + code_models.count_cache_bytes(module, dtype, share, 1, length))
            yield rate_row("bandwidth", seconds, 100 * size / bandwidth, "% of the peak", settings)
        yield Row("compilation", compile_seconds, "s", settings)
        if batch == batches[-1]:
            yield from kernel_rows("kernels of a batch", draw_codes, settings)


class Sampler:
    """Sampler of the first `length` codes of images of one prompt, with random weights."""

    def __init__(self, module, length: int):
        mesh = jax.tree.leaves(inference.on_devices(np.zeros(1)))[0].sharding.mesh
        self._mesh, self._sharded = mesh, NamedSharding(mesh, P("batch"))
        replicated = NamedSharding(mesh, P())
        ids = np.random.default_rng(0).integers(0, module.condition_size, (1, module.condition_length)).astype(np.int32)
        self._prompt = jax.device_put((ids, np.zeros((1, 0), np.int32)), replicated)  # and no known codes

        def init(key):
            return nn.unbox(module.init(key, self._prompt[0], jnp.zeros((1, 2), jnp.int32))["params"])

        params = jax.jit(init, out_shardings=replicated)(jax.random.key(0))
        module, params = unroll_for_decoding(module, params)
        self._programs, self._params = sampling.compile_programs(module), round_weights(params, module.dtype)
        self._prefilled = self._programs.prefill(self._params, *self._prompt)
        self._length = length

    def prepare(self, size: int, filtered: bool):
        """Compiles sampling of `size` images. Returns the seconds that it took, and a function that samples their codes."""
        rows, seeds = np.zeros(size, np.int32), np.arange(3 * size, dtype=np.uint32).reshape(size, 3)
        rows, seeds = jax.device_put((rows, seeds), self._sharded)
        groups = jax.device_put(np.zeros(self._mesh.size, np.int32), self._sharded)
        settings = Sampling(top_p=np.float32(0.9 if filtered else 1))
        limits = {"filtered": filtered, "guided": False}

        def request(start: int, stop: int) -> sampling.Requests:
            zeros = jax.device_put(np.zeros((size, stop - start), np.int32), self._sharded)
            return sampling.Requests(seeds, np.arange(start, stop), zeros, zeros.astype(bool))

        parts = [(start, stop, request(start, stop)) for start, stop in sampling.segments(self._length)]
        with jax.set_mesh(self._mesh):
            begun, compiled = time.perf_counter(), []
            prefixes, carry = self._programs.assign(self._prefilled, rows, groups, None)
            for start, stop, requests in parts:
                shapes = jax.eval_shape(
                    lambda carry, stop=stop: (carry[0], [cache.grow(stop) for cache in carry[1]]), carry
                )
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharded), shapes)
                inputs = self._params, settings, prefixes, shapes, requests, jnp.int32(start)
                compiled.append(self._programs.decode_chunk.lower(*inputs, **limits).compile())

        def draw_codes():
            with jax.set_mesh(self._mesh):
                prefilled = self._programs.prefill(self._params, *self._prompt)
                prefixes, carry = self._programs.assign(prefilled, rows, groups, None)
                for decode, (start, stop, requests) in zip(compiled, parts, strict=True):
                    sampling.make_room(carry[1], stop)
                    codes, _, carry = decode(self._params, settings, prefixes, carry, requests, jnp.int32(start))
                return codes

        return time.perf_counter() - begun, draw_codes


if __name__ == "__main__":
    main(rows, add_arguments)
