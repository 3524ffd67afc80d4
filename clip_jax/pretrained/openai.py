"""Parameter names of openai/CLIP and open_clip, and the options that follow from the shapes.

`entries` is the table of names; `infer_options` infers a model's sizes from shapes, since OpenAI's files have no
config.
"""

import math
import re
from collections.abc import Iterator, Mapping

from train_jax.errors import LoadError
from train_jax.weights.layout import STATS, Entry
from train_jax.weights.tensors import Tensor

ANCHOR = "visual.conv1.weight"  # identifies the format: in every model of it
_HEAD_WIDTH = 64
IGNORED = (r"^(input_resolution|context_length|vocab_size)$", r"num_batches_tracked$", r"attn_mask$")


def entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a model (options as in `CLIPOptions`) with their names in openai/CLIP."""
    image, text = model["image"], model["text"]
    table = list(_resnet(image) if image["tower"] == "resnet" else _vit(image))
    table += [
        Entry("text/tokens", ("token_embedding.weight",)),
        Entry("text/positions", ("positional_embedding",)),
        *_blocks("text/transformer", "transformer", text),
        *norm("text/norm_post", "ln_final"),
        Entry("text/proj/kernel", ("text_projection",)),
        Entry("logit_scale", ("logit_scale",), "scalar"),
    ]
    if model["loss"] == "sigmoid":
        table.append(Entry("logit_bias", ("logit_bias",), "scalar"))
    return table


def norm(ours: str, theirs: str) -> Iterator[Entry]:
    """Entries of a norm: PyTorch's `weight` and `bias`."""
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",))
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def linear(ours: str, theirs: str, kind: str = "linear", heads: int = 0) -> Iterator[Entry]:
    """Entries of a dense layer or convolution: PyTorch's `weight` and `bias`."""
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), kind, heads)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def attention(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Entries of PyTorch's `nn.MultiheadAttention` for `nn_jax.attention.SelfAttention`."""
    yield Entry(f"{ours}/qkv/kernel", (f"{theirs}.in_proj_weight",), "qkv", heads)
    yield Entry(f"{ours}/qkv/bias", (f"{theirs}.in_proj_bias",), "qkv_bias", heads)
    yield from linear(f"{ours}/out", f"{theirs}.out_proj", "merge_heads", heads)


def cross_attention(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Entries of `nn.MultiheadAttention` for `nn_jax.attention.CrossAttention`, with separate q, k and v."""
    for third, name in enumerate("qkv"):
        yield Entry(f"{ours}/{name}/kernel", (f"{theirs}.in_proj_weight",), "split_heads", heads, third)
        yield Entry(f"{ours}/{name}/bias", (f"{theirs}.in_proj_bias",), "heads_bias", heads, third)
    yield from linear(f"{ours}/out", f"{theirs}.out_proj", "merge_heads", heads)


def _blocks(ours: str, theirs: str, tower: Mapping) -> Iterator[Entry]:
    for index in range(tower["depth"]):
        mine, block = f"{ours}/block_{index}", f"{theirs}.resblocks.{index}"
        yield from norm(f"{mine}/norm1", f"{block}.ln_1")
        yield from attention(f"{mine}/attention", f"{block}.attn", tower["heads"])
        yield from norm(f"{mine}/norm2", f"{block}.ln_2")
        yield from linear(f"{mine}/mlp_in", f"{block}.mlp.c_fc")
        yield from linear(f"{mine}/mlp_out", f"{block}.mlp.c_proj")


def _vit(image: Mapping) -> Iterator[Entry]:
    yield Entry("vision/stem/kernel", ("visual.conv1.weight",), "conv")
    yield Entry("vision/cls", ("visual.class_embedding",))
    yield Entry("vision/positions", ("visual.positional_embedding",))
    yield from norm("vision/norm_pre", "visual.ln_pre")
    yield from _blocks("vision/transformer", "visual.transformer", image)
    yield from norm("vision/norm_post", "visual.ln_post")
    yield Entry("vision/proj/kernel", ("visual.proj",))


def _resnet(image: Mapping) -> Iterator[Entry]:
    def conv_and_norm(conv: str, their_conv: str, their_norm: str, batch_norm: str) -> Iterator[Entry]:
        yield Entry(f"vision/{conv}/kernel", (f"visual.{their_conv}.weight",), "conv")
        yield from norm(f"vision/{batch_norm}", f"visual.{their_norm}")
        yield Entry(f"{STATS}vision/{batch_norm}/mean", (f"visual.{their_norm}.running_mean",))
        yield Entry(f"{STATS}vision/{batch_norm}/var", (f"visual.{their_norm}.running_var",))

    for index in (1, 2, 3):
        yield from conv_and_norm(f"conv{index}", f"conv{index}", f"bn{index}", f"norm{index}")
    for stage, blocks in enumerate(image["layers"], 1):
        for block in range(blocks):
            mine, theirs = f"stage{stage}_{block}", f"layer{stage}.{block}"
            for index in (1, 2, 3):
                yield from conv_and_norm(
                    f"{mine}/conv{index}", f"{theirs}.conv{index}", f"{theirs}.bn{index}", f"{mine}/norm{index}"
                )
            if not block:  # the first of a stage has a projection
                yield from conv_and_norm(
                    f"{mine}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{mine}/shortcut_norm"
                )
    pool, theirs, heads = "vision/pool", "visual.attnpool", image["heads"]
    yield Entry(f"{pool}/positions", (f"{theirs}.positional_embedding",))
    for name in "qkv":
        yield Entry(f"{pool}/attention/{name}/kernel", (f"{theirs}.{name}_proj.weight",), "split_heads", heads)
        yield Entry(f"{pool}/attention/{name}/bias", (f"{theirs}.{name}_proj.bias",), "heads_bias", heads)
    yield from linear(f"{pool}/attention/out", f"{theirs}.c_proj", "merge_heads", heads)


def infer_options(tensors: Mapping[str, Tensor], source: str) -> dict:
    """Infers the model's options from shapes; activation and width of a head are OpenAI's.

    Raises LoadError if the names are not those of a CLIP.
    """
    required = ("token_embedding.weight", "positional_embedding", "text_projection", "visual.conv1.weight")
    missing = [name for name in required if name not in tensors]
    if missing:
        raise LoadError(f"{source} is no CLIP of OpenAI's kind: it has no {missing[0]}")
    context, text_width = tensors["positional_embedding"].shape
    text_depth = _count(tensors, r"^transformer\.resblocks\.(\d+)\.")
    if "visual.proj" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
        image = {
            "tower": "vit",
            "size": grid * patch,
            "patch": patch,
            "width": width,
            "depth": _count(tensors, r"^visual\.transformer\.resblocks\.(\d+)\."),
            "heads": heads(width, _HEAD_WIDTH, source),
            "mlp_ratio": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        }
    else:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        layers = tuple(_count(tensors, rf"^visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        image = {"tower": "resnet", "size": grid * 32, "width": width, "layers": layers}
        image["heads"] = heads(width * 32, _HEAD_WIDTH, source)
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "image": image,
        "text": {
            "context_length": context,
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "depth": text_depth,
            "heads": heads(text_width, _HEAD_WIDTH, source),
            "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / text_width,
            "pool": "argmax",
        },
        "activation": "quick_gelu",
        "loss": "softmax",
    }


def heads(width: int, head_width: int, source: str) -> int:
    """Computes the number of attention heads of a tower. Raises LoadError unless it divides the width."""
    num_heads = width // head_width if head_width else 0
    if not num_heads or width % num_heads:
        raise LoadError(
            f"{source}: a width of {width} cannot be split into heads of {head_width} (open_clip's head_width; "
            "OpenAI's 64)"
        )
    return num_heads


def _count(tensors: Mapping, pattern: str) -> int:
    return len({int(match[1]) for name in tensors if (match := re.match(pattern, name))})
