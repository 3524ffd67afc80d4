"""Compares sampling of codes with a cached sampler in PyTorch: the same model, weights, prompts and precision.

    python -m benchmarks.dalle [--models 72m 1b3] [--batches 1 8 64] [--codes 64]      (with the `peers` extra)

Measures codes per second, including the prefill of the prompt, and the share of the peak bandwidth of the memory that reads
of weights and caches need, where the bandwidth is known. Before the measurement both samplers must agree in greedy decoding.
"""

import argparse
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import code_models
from benchmarks.command import main, positive
from benchmarks.peers import name_peer, skipped_if_missing
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, rate_row, time_in_turns
from nn_jax.code_transformer import CodeTransformer, unroll_for_decoding
from nn_jax.decoding import Sampling
from nn_jax.mixed_precision import round_weights
from train_jax import inference, profiling
from train_jax.weights.layout import flatten
from vqgan_jax.stage2 import sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["72m", "1b3"], choices=("72m", "1b3"))
    parser.add_argument("--batches", nargs="+", type=positive, default=[1, 8, 64])
    parser.add_argument("--codes", type=positive, default=64, help="number of codes to sample, of the 256 codes of an image")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--bandwidth", type=float, help="memory bandwidth in GB/s (default: that of a known device)")
    parser.add_argument("--tiny", action="store_true", help="use toy models, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    length, dtype = arguments.codes, arguments.dtype
    bandwidth = 1e9 * (arguments.bandwidth or 0) or profiling.bandwidth_of_kind(jax.devices()[0].device_kind)
    for name in arguments.models:
        module = code_models.build(name, dtype, arguments.tiny)
        params = code_models.random_params(module)
        builders = {OURS: _build_ours(module, params, length)}
        with skipped_if_missing():
            builders |= _build_torch(module, params, length, dtype)
        for batch in arguments.batches:
            rng = np.random.default_rng(batch)
            prompts = rng.integers(0, module.condition_size, (batch, module.condition_length)).astype(np.int32)
            implementations = {by: prepare(prompts) for by, prepare in builders.items()}
            _check_agreement(implementations)
            turns = {by: functools.partial(run, 1.0) for by, run in implementations.items()}
            seconds = time_in_turns(turns, arguments.rounds)
            settings = {"model": name, "batch": batch, "codes": length, "dtype": dtype}
            yield from compare_rates("codes", seconds, batch * length, "codes/s", settings)
            if bandwidth:
                size = code_models.count_weight_bytes(module, dtype)
                size += code_models.count_cache_bytes(module, dtype, batch, batch, length)
                yield rate_row("bandwidth", seconds[OURS], 100 * size * length / bandwidth, "% of the peak", settings)


def _build_ours(module: CodeTransformer, params: dict, length: int) -> Callable:
    module, params = unroll_for_decoding(module, params)
    programs, variables = sampling.compile_programs(module), inference.on_devices(round_weights(params, module.dtype))
    mesh = jax.tree.leaves(variables)[0].sharding.mesh

    def prepare(prompts: np.ndarray) -> Callable[[float], np.ndarray]:
        batch = len(prompts)
        split = NamedSharding(mesh, P("batch"))
        seeds = jax.device_put(
            np.stack([np.zeros(batch), np.zeros(batch), np.arange(batch)], 1).astype(np.uint32), split
        )
        unknown = jax.device_put(np.zeros((batch, length), np.int32), split)
        text, rows = jax.device_put((prompts, np.arange(batch, dtype=np.int32)), split)

        def run(temperature: float) -> np.ndarray:
            settings, codes = Sampling(temperature=np.float32(temperature)), []
            with jax.set_mesh(mesh):
                prefilled = programs.prefill(variables, text, unknown[:, :0])
                prefixes, carry = programs.assign(prefilled, rows, rows, None)
                for start, stop in sampling.segments(length):
                    sampling.make_room(carry[1], stop)
                    known = unknown[:, start:stop]
                    requests = sampling.Requests(seeds, np.arange(start, stop), known, known.astype(bool))
                    part, _, carry = programs.decode_chunk(
                        variables, settings, prefixes, carry, requests, jnp.int32(start), filtered=False, guided=False
                    )
                    codes.append(part)
                return np.concatenate(codes, axis=1)

        return run

    return prepare


def _build_torch(module: CodeTransformer, params: dict, length: int, dtype: str) -> dict[str, Callable]:
    """Builds minDALL-E's sampler in PyTorch, with a preallocated cache, by its name."""
    import torch

    functional = torch.nn.functional
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    kind = getattr(torch, dtype)
    w = {k: torch.from_numpy(np.array(x)).to(device, kind) for k, x in flatten(params).items()}
    width, heads, depth = module.width, module.heads, module.depth
    blocks = []
    for i in range(depth):
        p = f"transformer/block_{i}"
        blocks.append(
            {
                "qkv": (w[f"{p}/attention/qkv/kernel"].reshape(width, -1).T, w[f"{p}/attention/qkv/bias"].reshape(-1)),
                "out": (w[f"{p}/attention/out/kernel"].reshape(-1, width).T, w[f"{p}/attention/out/bias"]),
                "in": (w[f"{p}/mlp_in/kernel"].T, w[f"{p}/mlp_in/bias"]),
                "down": (w[f"{p}/mlp_out/kernel"].T, w[f"{p}/mlp_out/bias"]),
                "norm1": (w[f"{p}/norm1/scale"], w[f"{p}/norm1/bias"]),
                "norm2": (w[f"{p}/norm2/scale"], w[f"{p}/norm2/bias"]),
            }
        )
    blocks = [{k: tuple(x.contiguous() for x in pair) for k, pair in block.items()} for block in blocks]
    head = w["head/kernel"].T.contiguous()

    def stream(x, keys, values, start):
        batch, t, _ = x.shape
        for i, b in enumerate(blocks):
            y = functional.layer_norm(x, (width,), *b["norm1"], 1e-5)
            q, k, v = functional.linear(y, *b["qkv"]).reshape(batch, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
            keys[i, :, :, start : start + t], values[i, :, :, start : start + t] = k, v
            cache = (keys[i, :, :, : start + t], values[i, :, :, : start + t])
            y = functional.scaled_dot_product_attention(q, *cache, is_causal=t > 1)
            x = x + functional.linear(y.transpose(1, 2).reshape(batch, t, width), *b["out"])
            y = functional.layer_norm(x, (width,), *b["norm2"], 1e-5)
            x = x + functional.linear(functional.gelu(functional.linear(y, *b["in"])), *b["down"])
        last = functional.layer_norm(x[:, -1], (width,), w["norm/scale"], w["norm/bias"], 1e-5)
        return functional.linear(last, head).float()

    def prepare(prompts: np.ndarray) -> Callable[[float], np.ndarray]:
        text, (batch, prompt) = torch.from_numpy(prompts).long().to(device), prompts.shape

        @torch.no_grad()
        def run(temperature: float) -> np.ndarray:
            shape = (depth, batch, heads, prompt + length, width // heads)
            keys, values = torch.zeros(shape, dtype=kind, device=device), torch.zeros(shape, dtype=kind, device=device)
            logits = stream(w["condition/tokens"][text] + w["condition/positions"], keys, values, 0)
            codes = []
            for position in range(length):
                if temperature:
                    code = torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0]
                else:
                    code = logits.argmax(-1)
                codes.append(code)
                if position + 1 < length:
                    x = w["codes/tokens"][code] + w["codes/positions"][position]
                    logits = stream(x[:, None], keys, values, prompt + position)
            return torch.stack(codes, 1).cpu().numpy()

        return run

    return {name_peer("PyTorch", torch): prepare}


def _check_agreement(implementations: dict[str, Callable]) -> None:
    """Checks that both implementations agree in greedy decoding."""
    codes = [run(0.0) for run in implementations.values()]
    # If two codes are nearly equally likely, all later codes of the row may differ, so few rows may differ.
    share = np.mean(codes[0] == codes[-1])
    if share < 0.9:
        raise SystemExit(f"ours and PyTorch agree in only {share:.0%} of the codes")


if __name__ == "__main__":
    main(rows, add_arguments)
