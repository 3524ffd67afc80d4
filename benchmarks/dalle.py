"""Compares sampling of codes with a cached sampler in PyTorch: the same model, weights, prompts and precision.

    python -m benchmarks.dalle [--models 72m 1b3] [--batches 1 8 64] [--codes 64]      (with the `peers` extra)

Measures codes per second, including the prefill of the prompt, and with `--bandwidth` the share of the memory bandwidth that
reads of weights and caches need. Before the measurement both samplers must agree in greedy decoding.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dalle_jax.captions import CharBpeCaptions
from dalle_jax.options import DALLEOptions
from nn_jax.code_transformer import CodeTransformer, shapes, unroll_for_decoding
from nn_jax.decoding import Sampling
from nn_jax.mixed_precision import round_weights
from train_jax import inference
from train_jax.compute import TransformerCompute
from train_jax.weights.layout import flatten
from vqgan_jax.stage2 import model as model_lib
from vqgan_jax.stage2 import sampling

GRID, TEXT = (16, 16), 64
MODELS = {
    "72m": {"width": 640, "depth": 12, "heads": 10, "text_size": 2048, "num_codes": 8192},
    "1b3": {"width": 1536, "depth": 42, "heads": 24, "text_size": 16_384, "num_codes": 16_384},
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.dalle", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--codes", type=int, default=64, help="number of codes to sample, of the 256 codes of an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--bandwidth", type=float, default=0.0, help="memory bandwidth of the machine in GB/s")
    arguments = parser.parse_args()
    machine = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    print(f"{arguments.dtype}, {machine}, jax {jax.__version__}, {arguments.codes} codes; codes a second\n")
    header = ["model", "parameters", "batch", "ours", "PyTorch", "ours / PyTorch", "share of bandwidth"]
    print("| " + " | ".join(header) + " |\n| " + " | ".join(["---"] * len(header)) + " |")
    for name in arguments.models:
        options = dict(MODELS[name])
        text_size, num_codes = options.pop("text_size"), options.pop("num_codes")
        config = DALLEOptions.parse(options | {"positions": "learned"}, "model")
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())  # unused, since prompts are token ids
        captions = CharBpeCaptions(bpe, length=TEXT, vocabulary_size=text_size, pad=0)
        module = model_lib.build(config, captions, num_codes, GRID, TransformerCompute(dtype=arguments.dtype))
        params = _random_params(module)
        count = sum(x.size for x in jax.tree.leaves(params))
        ours = _build_ours(module, params, arguments.codes)
        theirs = _build_torch(module, params, arguments.codes, arguments.dtype)
        for batch in arguments.batches:
            prompts = np.random.default_rng(batch).integers(0, text_size, (batch, TEXT)).astype(np.int32)
            implementations = {"ours": ours(prompts)} | ({"PyTorch": theirs(prompts)} if theirs else {})
            _check_agreement(implementations)
            seconds = _measure_seconds(implementations, arguments.rounds)
            rates = {implementation: batch * arguments.codes / t for implementation, t in seconds.items()}
            share = "not known"
            if arguments.bandwidth:
                width = 4 if arguments.dtype == "float32" else 2
                cache = 2 * config.depth * config.width * (TEXT + arguments.codes / 2) * batch
                read = width * (count - (text_size + num_codes) * config.width + cache) * arguments.codes
                share = f"{100 * read / seconds['ours'] / 1e9 / arguments.bandwidth:.0f} %"
            peer = f"{rates['PyTorch']:.1f} | {rates['ours'] / rates['PyTorch']:.2f}" if theirs else "| "
            print(f"| {name} | {count:,} | {batch} | {rates['ours']:.1f} | {peer} | {share} |", flush=True)


def _random_params(module: CodeTransformer) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: rng.standard_normal(s, np.float32) * np.float32(0.05),
        shapes(module),
        is_leaf=lambda s: isinstance(s, tuple),
    )


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


def _build_torch(module: CodeTransformer, params: dict, length: int, dtype: str) -> Callable | None:
    """Builds minDALL-E's sampler in PyTorch, with a preallocated cache."""
    try:
        import torch
    except ImportError as error:
        print(f"the peer is not installed ({error}): pip install -e '.[peers]'")
        return None
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
        text, batch = torch.from_numpy(prompts).long().to(device), len(prompts)

        @torch.no_grad()
        def run(temperature: float) -> np.ndarray:
            shape = (depth, batch, heads, TEXT + length, width // heads)
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
                    logits = stream(x[:, None], keys, values, TEXT + position)
            return torch.stack(codes, 1).cpu().numpy()

        return run

    return prepare


def _check_agreement(implementations: dict[str, Callable]) -> None:
    """Checks that both implementations agree in greedy decoding."""
    codes = [run(0.0) for run in implementations.values()]
    # If two codes are nearly equally likely, all later codes of the row may differ, so few rows may differ.
    share = np.mean(codes[0] == codes[-1])
    if share < 0.9:
        raise SystemExit(f"ours and PyTorch agree in only {share:.0%} of the codes")


def _measure_seconds(implementations: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Measures median seconds over `rounds`, alternating between implementations."""
    seconds = {implementation: [] for implementation in implementations}
    for round_index in range(rounds + 1):  # the first warms up
        for implementation, run in implementations.items():
            start = time.perf_counter()
            run(1.0)
            if round_index:
                seconds[implementation].append(time.perf_counter() - start)
    return {implementation: statistics.median(t) for implementation, t in seconds.items()}


if __name__ == "__main__":
    main()
