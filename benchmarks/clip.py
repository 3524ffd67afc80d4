"""Compares ViT-B/32 with transformers' FlaxCLIPModel and CLIPModel (PyTorch): the same weights, batch and precision.

    python -m benchmarks.clip [--batch 16] [--rounds 5]         (needs the `peers` extra; otherwise only ours is measured)

Measures the encoding of images and texts, and the loss and its gradient on training pairs (without optimiser), in turns.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import load_config
from benchmarks.command import main, positive
from benchmarks.peers import name_peer, skipped_if_missing
from benchmarks.results import OURS, Row
from benchmarks.synthetic import TINY
from benchmarks.timing import compare_rates, flops_rows, time_in_turns
from clip_jax import loss, model
from clip_jax.flops import forward_flops, training_flops
from clip_jax.options import CLIPCompute, CLIPOptions
from clip_jax.pretrained.hugging_face import list_clip_entries
from train_jax import config as config_lib
from train_jax.weights.layout import flatten, to_peer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true", help="use towers of two narrow blocks, to test the benchmark")


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    config = load_config("clip/vit_b32")
    config.model.activation = "quick_gelu"
    if arguments.tiny:
        config.model.update({"image": TINY, "text": TINY})
    options = CLIPOptions.parse(config_lib.resolve(config).model, "model")
    compute = CLIPCompute(dtype=arguments.dtype, scan=False)  # unrolled, as the peers are
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((arguments.batch, 224, 224, 3)).astype(np.float32)
    ids = rng.integers(1, 49_000, (arguments.batch, 77)).astype(np.int32)
    ids[:, -1] = 49_407

    implementations = {}
    implementations[OURS], params = _build_ours(options, compute, pixels, ids)
    with tempfile.TemporaryDirectory() as folder:
        with skipped_if_missing():
            _write_model(folder, options, params)
            implementations |= _build_torch(folder, pixels, ids, arguments.dtype)
            implementations |= _build_flax(folder, pixels, ids, arguments.dtype)
        _check_agreement(implementations)
        contestants = {(by, workload): run for by, runs in implementations.items() for workload, run in runs.items()}
        times = time_in_turns(contestants, arguments.rounds)

    settings = {"model": "ViT-B/32", "batch": arguments.batch, "dtype": arguments.dtype}
    image_flops, text_flops = forward_flops(options)
    flops = {"images": image_flops, "texts": text_flops, "training pairs": training_flops(options)}
    for workload in flops:
        seconds = {by: times[by, workload] for by in implementations}
        yield from compare_rates(workload, seconds, arguments.batch, "a second", settings)
        yield from flops_rows(workload, seconds[OURS], arguments.batch * flops[workload], settings)


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
    return run, params


def init_params(module, key, images, ids):
    import flax.linen as nn

    return nn.unbox(module.init(key, images, ids)["params"])


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
    sizes = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
    image, text = (
        {name: getattr(tower, ours) for name, ours in sizes.items()} | {"intermediate_size": 4 * tower.width}
        for tower in (options.image, options.text)
    )
    image |= {"patch_size": 32}
    text |= {"eos_token_id": 49_407, "vocab_size": options.text.vocab_size}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=options.embed_dim)
    config.save_pretrained(folder)


def _build_torch(folder: str, pixels, ids, dtype: str) -> dict[str, Implementation]:
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    peer = transformers.CLIPModel.from_pretrained(folder).eval().to(device)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(device)
    t = torch.from_numpy(ids).long().to(device)
    precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def unit(features):
        return torch.nn.functional.normalize(features, dim=-1)

    def train():
        peer.zero_grad(set_to_none=True)
        with precision:
            value = peer(input_ids=t, pixel_values=x, return_loss=True).loss
        value.backward()
        return value.detach().cpu().numpy()

    def without_gradients(function: Callable) -> Callable:
        def run():
            with torch.inference_mode(), precision:
                return unit(function()).float().cpu().numpy()

        return run

    runs = {
        "images": without_gradients(lambda: peer.get_image_features(pixel_values=x)),
        "texts": without_gradients(lambda: peer.get_text_features(input_ids=t)),
        "training pairs": train,
    }
    return {name_peer("PyTorch", torch): runs}


def _build_flax(folder: str, pixels, ids, dtype: str) -> dict[str, Implementation]:
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
    return {name_peer("transformers' Flax", transformers): run}


def _check_agreement(implementations: dict[str, Implementation]) -> None:
    """Checks that all implementations compute the same features."""
    for workload in ("images", "texts"):
        ours = np.asarray(implementations[OURS][workload](), np.float32)
        for name, other in implementations.items():
            difference = np.abs(ours - np.asarray(other[workload](), np.float32)).max()
            if difference > 2e-2:
                raise SystemExit(f"{name} computes different {workload}: the maximum difference is {difference:.1e}")


if __name__ == "__main__":
    main(rows, add_arguments)
