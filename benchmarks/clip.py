"""Compares ViT-B/32 with transformers' FlaxCLIPModel and CLIPModel (PyTorch): the same weights, batch and precision.

    python -m benchmarks.clip [--batch 16] [--rounds 5]         (needs the `peers` extra; otherwise only ours is measured)

Measures the encoding of images and texts, and the loss and its gradient on training pairs (without optimiser), alternating
between implementations. On a GPU also prints the share of the device's peak.
"""

import argparse
import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from clip_jax import loss, model
from clip_jax.flops import forward_flops, training_flops
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained.hugging_face import list_clip_entries
from train_jax import config as config_lib
from train_jax import profiling
from train_jax.weights.layout import flatten, to_peer


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.clip", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of ours and of Flax")
    arguments = parser.parse_args()
    config = load_config("clip/vit_b32")
    config.model.activation = "quick_gelu"
    options = CLIPOptions.parse(config_lib.resolve(config).model, "model")
    compute = CLIPCompute(dtype=arguments.dtype, scan=False)  # unrolled, as the peers are
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((arguments.batch, 224, 224, 3)).astype(np.float32)
    ids = rng.integers(1, 49_000, (arguments.batch, 77)).astype(np.int32)
    ids[:, -1] = 49_407

    implementations = {}
    implementations["ours"], params = _build_ours(options, compute, pixels, ids)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            _write_model(folder, options, params)
            implementations["PyTorch"] = _build_torch(folder, pixels, ids)
            implementations["Flax"] = _build_flax(folder, pixels, ids, arguments.dtype)
        except ImportError as error:
            print(f"a peer is not installed ({error}): pip install -e '.[peers]'")
        _check_agreement(implementations)
        rates = _measure_rates(implementations, arguments.rounds, arguments.batch)

    machine = f"{jax.devices()[0].device_kind} ({platform.machine()})"
    print(f"ViT-B/32, batch {arguments.batch}, {arguments.dtype}, {machine}, jax {jax.__version__}; rates per second")
    names = list(rates)
    print("| " + " | ".join(["", *names, "ours / fastest peer", "ours, GFLOP/s"]) + " |")
    print("| " + " | ".join(["---"] * (len(names) + 3)) + " |")
    image_flops, text_flops = forward_flops(options)
    flops = {"images": image_flops, "texts": text_flops, "training pairs": training_flops(options)}
    for workload in flops:
        fastest = max((rates[name][workload] for name in names if name != "ours"), default=float("nan"))
        ours = rates["ours"][workload]
        cells = [
            workload,
            *(f"{rates[name][workload]:.1f}" for name in names),
            f"{ours / fastest:.2f}",
            f"{ours * flops[workload] * 1e-9:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")
    peak = profiling.peak_flops(jax.devices())
    if peak:
        print(f"training: {rates['ours']['training pairs'] * flops['training pairs'] / peak:.1%} of the device's peak")


Implementation = dict[str, Callable]


def _build_ours(options, compute, pixels, ids) -> tuple[Implementation, dict]:
    module = model.build(options, options.text.vocab_size, 49_407, compute)
    x, t = jnp.asarray(pixels), jnp.asarray(ids)
    params = jax.jit(lambda key: init_params(module, key, x[:1], t[:1]))(jax.random.key(0))
    image = jax.jit(lambda p: module.apply({"params": p}, x, method="encode_image"))
    text = jax.jit(lambda p: module.apply({"params": p}, t, method="encode_text"))

    def value(p):
        images, texts, scale, _ = module.apply({"params": p}, x, t)
        return loss.softmax_loss(images, texts, scale, jnp.arange(len(ids)))[0]

    train = jax.jit(jax.value_and_grad(value))
    run = {"images": lambda: image(params), "texts": lambda: text(params), "training pairs": lambda: train(params)}
    return {name: _blocking(function) for name, function in run.items()}, params


def init_params(module, key, images, ids):
    import flax.linen as nn

    return nn.unbox(module.init(key, images, ids)["params"])


def _blocking(function: Callable) -> Callable:
    return lambda: jax.block_until_ready(function())


def _write_model(folder: str, options, params) -> None:
    """Writes the weights as a model directory of transformers."""
    import transformers
    from safetensors.numpy import save_file

    table = list_clip_entries(options.to_dict())
    weights = to_peer(flatten(jax.tree.map(np.asarray, params)), table)
    save_file(
        {k: np.array(v, np.float32, order="C") for k, v in weights.items()},
        f"{folder}/model.safetensors",
        {"format": "pt"},
    )
    text = {"eos_token_id": 49_407, "vocab_size": options.text.vocab_size}
    transformers.CLIPConfig(text_config=text, vision_config={"patch_size": 32}, projection_dim=512).save_pretrained(
        folder
    )


def _build_torch(folder: str, pixels, ids) -> Implementation:
    import torch
    import transformers

    peer = transformers.CLIPModel.from_pretrained(folder).eval()
    x, t = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids).long()

    def unit(features):
        return torch.nn.functional.normalize(features, dim=-1)

    def train():
        peer.zero_grad(set_to_none=True)
        value = peer(input_ids=t, pixel_values=x, return_loss=True).loss
        value.backward()
        return value.detach()

    def without_gradients(function: Callable) -> Callable:
        def run():
            with torch.inference_mode():
                return unit(function())

        return run

    return {
        "images": without_gradients(lambda: peer.get_image_features(pixel_values=x)),
        "texts": without_gradients(lambda: peer.get_text_features(input_ids=t)),
        "training pairs": train,
    }


def _build_flax(folder: str, pixels, ids, dtype: str) -> Implementation:
    import transformers

    peer = transformers.FlaxCLIPModel.from_pretrained(folder, from_pt=True, dtype=jnp.dtype(dtype))
    x, t = jnp.asarray(pixels.transpose(0, 3, 1, 2)), jnp.asarray(ids)
    params = peer.params

    def unit(features):
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    image = jax.jit(lambda p: unit(peer.get_image_features(x, params=p)))
    text = jax.jit(lambda p: unit(peer.get_text_features(t, params=p)))

    def value(p):
        logits = peer(t, x, params=p).logits_per_image
        diagonal = jnp.arange(len(ids))
        rows = jax.nn.log_softmax(logits, axis=1)[diagonal, diagonal]
        columns = jax.nn.log_softmax(logits, axis=0)[diagonal, diagonal]
        return -(jnp.mean(rows) + jnp.mean(columns)) / 2

    train = jax.jit(jax.value_and_grad(value))
    run = {"images": lambda: image(params), "texts": lambda: text(params), "training pairs": lambda: train(params)}
    return {name: _blocking(function) for name, function in run.items()}


def _check_agreement(implementations: dict[str, Implementation]) -> None:
    """Checks that all implementations compute the same features."""
    for workload in ("images", "texts"):
        ours = np.asarray(implementations["ours"][workload](), np.float32)
        for name, other in implementations.items():
            difference = np.abs(ours - np.asarray(other[workload](), np.float32)).max()
            if difference > 2e-2:
                raise SystemExit(f"{name} computes different {workload}: the maximum difference is {difference:.1e}")


def _measure_rates(implementations: dict[str, Implementation], rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Measures median rates per second over `rounds`. Each round runs every implementation once."""
    seconds = {name: {workload: [] for workload in functions} for name, functions in implementations.items()}
    for round_index in range(rounds + 1):  # the first compiles
        for name, functions in implementations.items():
            for workload, function in functions.items():
                start = time.perf_counter()
                function()
                if round_index:
                    seconds[name][workload].append(time.perf_counter() - start)
    return {
        name: {workload: batch / statistics.median(values) for workload, values in times.items()}
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    main()
