"""Compares the networks of karlo with diffusers' (PyTorch): the same random weights, batch and precision.

    python -m benchmarks.unclip [--narrow 2] [--batch 1]        (needs the `peers` extra; otherwise only ours is measured)

Measures in turns a step of sampling from the prior, the decoder (both guided: two rows for each image) and the upsampler
from 64 to 256 pixels, and a step of training of prior and decoder: the loss and its gradient, without optimiser. A step of
sampling is the prediction; the scheduler's arithmetic is left out. Outputs are compared before. The networks are those of
karlo with all widths divided by `--narrow`, which divides parameters and time by nearly its square.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import main, positive
from benchmarks.peers import name_peer, skipped_if_missing
from benchmarks.results import OURS, Row
from benchmarks.timing import compare_rates, flops_rows, time_in_turns
from clip_jax.options import CLIPOptions
from dalle_jax.unclip.context import Context
from dalle_jax.unclip.diffusion import Diffusion, split_variance
from dalle_jax.unclip.flops import unet_flops
from dalle_jax.unclip.options import DecoderOptions, PriorOptions, UNetOptions
from dalle_jax.unclip.pretrained.checkpoint import STATISTICS
from dalle_jax.unclip.pretrained.karlo import list_entries
from dalle_jax.unclip.prior_model import build
from dalle_jax.unclip.samplers import guide
from dalle_jax.unclip.unet import UNet
from nn_jax.mixed_precision import round_weights
from train_jax.compute import TransformerCompute
from train_jax.profiling import BACKWARD
from train_jax.weights.layout import flatten, to_peer
from vqgan_jax.placeholders import random_weights

GUIDANCE = 4.0
TEXT_WIDTH = 768  # of ViT-L/14
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of outputs, relative to the largest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--narrow", type=int, default=1, choices=(1, 2, 4, 8, 16), help="divisor of karlo's widths")
    parser.add_argument("--batch", type=positive, default=1, help="images of a step; guided steps have twice as many rows")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tiny", action="store_true", help="use networks of two levels and blocks, to test the benchmark")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of unCLIP with inputs of a guided step: pairs of rows, except for the upsampler.

    Attributes:
      module: ours.
      inputs: arguments of the module, NumPy arrays.
      flops: FLOPs of a row.
      is_guided: whether a step has two rows for each image.
      entries: names of the parameters in diffusers.
      make_peer: function that makes the network of diffusers, and a function `(network, inputs) -> output` of tensors.
    """

    name: str
    module: nn.Module
    inputs: Sequence[Any]
    flops: int
    is_guided: bool
    entries: list
    make_peer: Callable[[], tuple[Any, Callable]]


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    for make_network in (make_prior, make_decoder, make_upsampler):
        yield from _compare(make_network(arguments), arguments)  # the memory of each is free before the next


def _compare(network: Network, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measures the steps of one network by ours and by the peer."""
    params = random_weights(_abstract_params(network))
    implementations = {OURS: _build_ours(network, params, arguments.dtype)}
    with skipped_if_missing():
        implementations |= _build_torch(network, params, arguments.dtype)
    del params
    _check_agreement(network.name, implementations, _TOLERANCE[arguments.dtype])
    contestants = {(by, step): run for by, steps in implementations.items() for step, run in steps.items()}
    times = time_in_turns(contestants, arguments.rounds)
    settings = {"widths": f"karlo's / {arguments.narrow}", "batch": arguments.batch, "dtype": arguments.dtype}
    passes = {"sampling": 1 + network.is_guided, "training": BACKWARD}  # of the network, for each image
    for step in implementations[OURS]:
        name, seconds = f"{network.name}: {step}", {by: times[by, step] for by in implementations}
        yield from compare_rates(name, seconds, 1, "steps/s", settings)
        yield from flops_rows(name, seconds[OURS], float(passes[step] * arguments.batch * network.flops), settings)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def make_prior(arguments: argparse.Namespace) -> Network:
    narrow, depth = (16, 2) if arguments.tiny else (arguments.narrow, 20)
    options = PriorOptions(width=2048 // narrow, depth=depth, heads=32 // narrow)
    count = 2 * arguments.batch
    dim, length = options.embed_dim, options.text_length
    x, t = _draw_pairs(count, dim), np.full(count, 500, np.int32)
    text = _draw(count, dim), _draw(count, length, TEXT_WIDTH), _mask(count, length)

    def make_peer():
        from diffusers import PriorTransformer

        def apply(network, x, t, embedding, states, mask):
            texts = {"proj_embedding": embedding, "encoder_hidden_states": states, "attention_mask": mask}
            return network(x, timestep=t, **texts).predicted_image_embedding

        sizes = {"num_attention_heads": options.heads, "attention_head_dim": options.width // options.heads}
        lengths = {"num_layers": options.depth, "num_embeddings": options.text_length}
        return PriorTransformer(embedding_dim=options.embed_dim, **sizes, **lengths), apply

    model = build(options, Diffusion(), TransformerCompute(dtype=arguments.dtype, scan=False))
    entries = list_entries(options, DecoderOptions(), UNetOptions())["prior"]
    entries = [entry for entry in entries if not entry.ours.startswith(STATISTICS)]
    return Network("prior", model.network, (x, t, *text), model.flops(TEXT_WIDTH), True, entries, make_peer)


def make_decoder(arguments: argparse.Namespace) -> Network:
    options = DecoderOptions(**_sizes(arguments, 64), scale_shift=True, **_attention(arguments))
    count, tokens = 2 * arguments.batch, options.image_tokens + 77
    context = Context(_draw(count, 4 * options.channels[0]), _draw(count, tokens, options.context_dim), _mask(count, tokens))
    x, t = _draw_pairs(count, options.size, options.size, 3), np.full(count, 500, np.int32)

    def make_peer():
        from diffusers import UNet2DConditionModel

        def apply(network, x, t, context):
            return network(x, t, context.tokens, class_labels=context.embedding, attention_mask=context.mask).sample

        has_attention = [level in options.attention for level in range(len(options.channels))]
        network = UNet2DConditionModel(
            **_unet_sizes(options), in_channels=3, out_channels=6, cross_attention_dim=options.context_dim,
            attention_head_dim=options.head_dim, class_embed_type="identity", resnet_time_scale_shift="scale_shift",
            down_block_types=["SimpleCrossAttnDownBlock2D" if x else "ResnetDownsampleBlock2D" for x in has_attention],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=["SimpleCrossAttnUpBlock2D" if x else "ResnetUpsampleBlock2D" for x in reversed(has_attention)],
        )  # fmt: skip
        return network, apply

    module = UNet(options, 6, TransformerCompute(dtype=arguments.dtype))
    entries = list_entries(PriorOptions(), options, UNetOptions())["decoder"]
    return Network("decoder", module, (x, t, context), unet_flops(options, 6, 3, CLIPOptions()), True, entries, make_peer)


def make_upsampler(arguments: argparse.Namespace) -> Network:
    options = UNetOptions(**_sizes(arguments, 256))
    x = _draw(arguments.batch, options.size, options.size, 6)
    t = np.full(arguments.batch, 500, np.int32)

    def make_peer():
        from diffusers import UNet2DModel

        levels = len(options.channels)
        network = UNet2DModel(
            **_unet_sizes(options), in_channels=6, out_channels=3, add_attention=False,
            down_block_types=["ResnetDownsampleBlock2D"] * levels, up_block_types=["ResnetUpsampleBlock2D"] * levels,
        )  # fmt: skip
        return network, lambda network, x, t: network(x, t).sample

    module = UNet(options, 3, TransformerCompute(dtype=arguments.dtype))
    entries = list_entries(PriorOptions(), DecoderOptions(), options)["super_res_first"]
    return Network("upsampler", module, (x, t), unet_flops(options, 3, 6), False, entries, make_peer)


def _sizes(arguments: argparse.Namespace, size: int) -> dict[str, Any]:
    if arguments.tiny:
        return {"size": 16, "channels": (16, 32), "blocks": 1, "groups": 8}
    channels = tuple(width // arguments.narrow for width in UNetOptions().channels)
    return {"size": size, "channels": channels, "groups": UNetOptions().groups // arguments.narrow}


def _attention(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.tiny:
        return {"attention": (1,), "head_dim": 8, "context_dim": 24}
    default = DecoderOptions()
    return {"head_dim": default.head_dim // arguments.narrow, "context_dim": default.context_dim // arguments.narrow}


def _unet_sizes(options: UNetOptions) -> dict[str, Any]:
    """Returns the sizes of a U-Net as diffusers names them."""
    return {
        "sample_size": options.size,
        "block_out_channels": options.channels,
        "layers_per_block": options.blocks,
        "norm_num_groups": options.groups,
        "norm_eps": 1e-5,
    }


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _draw_pairs(count: int, *shape: int) -> np.ndarray:
    """Draws rows of which each has a copy behind it, as guidance needs."""
    return np.repeat(_draw(count // 2, *shape), 2, axis=0)


def _mask(count: int, length: int) -> np.ndarray:
    """Makes masks of texts of half the length."""
    return np.tile(np.arange(length) < length // 2, (count, 1))


def _abstract_params(network: Network) -> Any:
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tuple(network.inputs))
    return nn.unbox(jax.eval_shape(network.module.init, jax.random.key(0), *inputs))["params"]


# ---------------------------------------------------------------------------------------------------------------------
# Implementations: step -> function that makes it and returns its output

Implementation = dict[str, Callable]


def _build_ours(network: Network, params: Any, dtype: str) -> Implementation:
    inputs, module = jax.tree.map(jnp.asarray, tuple(network.inputs)), network.module
    weights = jax.tree.map(jnp.asarray, params)
    rounded = round_weights(weights, jnp.dtype(dtype))

    @jax.jit
    def sample(params, x, t, *condition):
        def predict(x, t):
            return module.apply({"params": params}, x, t, *condition)

        return guide(predict, GUIDANCE)(x[::2], t[::2]) if network.is_guided else predict(x, t)

    run = {"sampling": lambda: sample(rounded, *inputs)}
    if not network.is_guided:
        return run
    conditional = jax.tree.map(lambda a: a[::2], inputs)  # without the rows that guidance alone needs

    @jax.jit
    def train(params, x, t, *condition):
        def loss(params):
            prediction, _ = split_variance(module.apply({"params": params}, x, t, *condition), x.shape[-1])
            return jnp.mean(jnp.square(prediction - x))

        return jax.value_and_grad(loss)(params)

    return run | {"training": lambda: train(weights, *conditional)}


def _build_torch(network: Network, params: Any, dtype: str) -> dict[str, Implementation]:
    import torch

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    peer, apply = network.make_peer()
    weights = to_peer(flatten(params), network.entries)
    tensors = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in weights.items()}
    missing, unknown = peer.load_state_dict(tensors, strict=False)
    if unknown or set(missing) - {"clip_mean", "clip_std"}:
        raise SystemExit(f"{network.name}: diffusers' has other parameters: {missing}, {unknown}")
    peer = peer.to(device).train()  # whose dropout is 0
    x, t, *condition = jax.tree.map(lambda a: torch.from_numpy(_channels_first(a)).to(device), tuple(network.inputs))
    precision = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    channels = x.shape[1]

    def sample():
        with torch.inference_mode(), precision:
            output = apply(peer, x, t, *condition).float()
            if network.is_guided:
                conditional, null = output[::2], output[1::2]
                guided = null[:, :channels] + GUIDANCE * (conditional[:, :channels] - null[:, :channels])
                output = torch.cat([guided, conditional[:, channels:]], dim=1)
            output = output.cpu().numpy()
        return output.transpose(0, 2, 3, 1) if output.ndim == 4 else output

    x_half, t_half, *condition_half = jax.tree.map(lambda a: a[::2], (x, t, *condition))

    def train():
        peer.zero_grad(set_to_none=True)
        with precision:
            prediction = apply(peer, x_half, t_half, *condition_half)[:, :channels]
        loss = torch.mean(torch.square(prediction.float() - x_half))
        loss.backward()
        return loss.detach().cpu().numpy(), ()

    steps = {"sampling": sample} | ({"training": train} if network.is_guided else {})
    return {name_peer("PyTorch", torch): steps}


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


def _check_agreement(name: str, implementations: dict[str, Implementation], tolerance: float) -> None:
    """Checks that all implementations compute the same outputs and losses."""
    for step, run in implementations[OURS].items():
        pick = (lambda result: result[0]) if step == "training" else (lambda result: result)
        ours = np.asarray(pick(run()), np.float32)
        for by, steps in implementations.items():
            difference = np.abs(ours - np.asarray(pick(steps[step]()), np.float32)).max() / np.abs(ours).max()
            if not difference < tolerance:
                raise SystemExit(f"{name}: {by} computes another {step} step: the largest difference is {difference:.1e}")


if __name__ == "__main__":
    main(rows, add_arguments)
