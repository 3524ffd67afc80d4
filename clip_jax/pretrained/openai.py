"""The parameter names of openai/CLIP, which open_clip shares, and the model they tell of.

`entries` is the table; `options` reads a model's sizes off the shapes, which is all that OpenAI's own files offer.
"""

import math
import re
from collections.abc import Iterator, Mapping

from train_jax.errors import LoadError
from train_jax.weights.layout import STATS, Entry
from train_jax.weights.tensors import Tensor

ANCHOR = "visual.conv1.weight"  # a tensor that every model of this kind has under this name alone
_HEAD_WIDTH = 64
IGNORED = (r"^(input_resolution|context_length|vocab_size)$", r"num_batches_tracked$", r"attn_mask$")


def entries(model: Mapping) -> list[Entry]:
    """The table for a model (options as in `clip_jax.model.defaults`)."""
    image, text = model["image"], model["text"]
    found = list(_resnet(image) if image["tower"] == "resnet" else _vit(image))
    found += [
        Entry("text/tokens", ("token_embedding.weight",)),
        Entry("text/positions", ("positional_embedding",)),
        *_blocks("text/transformer", "transformer", text),
        *norm("text/norm_post", "ln_final"),
        Entry("text/proj/kernel", ("text_projection",)),
        Entry("logit_scale", ("logit_scale",), "number"),
    ]
    if model["loss"] == "sigmoid":
        found.append(Entry("logit_bias", ("logit_bias",), "number"))
    return found


def norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",))
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def linear(ours: str, theirs: str, kind: str = "linear", heads: int = 0) -> Iterator[Entry]:
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), kind, heads)
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def attention(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """PyTorch's `nn.MultiheadAttention`."""
    yield Entry(f"{ours}/qkv/kernel", (f"{theirs}.in_proj_weight",), "qkv", heads)
    yield Entry(f"{ours}/qkv/bias", (f"{theirs}.in_proj_bias",), "qkv_bias", heads)
    yield from linear(f"{ours}/out", f"{theirs}.out_proj", "heads_in", heads)


def cross_attention(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """The same for `nn_jax.attention.CrossAttention`, whose queries, keys and values have kernels of their own."""
    for third, name in enumerate("qkv"):
        yield Entry(f"{ours}/{name}/kernel", (f"{theirs}.in_proj_weight",), "heads_out", heads, third)
        yield Entry(f"{ours}/{name}/bias", (f"{theirs}.in_proj_bias",), "heads_bias", heads, third)
    yield from linear(f"{ours}/out", f"{theirs}.out_proj", "heads_in", heads)


def _blocks(ours: str, theirs: str, tower: Mapping) -> Iterator[Entry]:
    for number in range(tower["depth"]):
        mine, block = f"{ours}/block_{number}", f"{theirs}.resblocks.{number}"
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
    def step(ours: str, theirs: str, conv: str, batch_norm: str) -> Iterator[Entry]:
        yield Entry(f"vision/{ours}/kernel", (f"visual.{theirs}.weight",), "conv")
        mine, norm_name = f"vision/{batch_norm}", conv
        yield from norm(mine, f"visual.{norm_name}")
        yield Entry(f"{STATS}{mine}/mean", (f"visual.{norm_name}.running_mean",))
        yield Entry(f"{STATS}{mine}/var", (f"visual.{norm_name}.running_var",))

    for number in (1, 2, 3):
        yield from step(f"conv{number}", f"conv{number}", f"bn{number}", f"norm{number}")
    for stage, blocks in enumerate(image["layers"], 1):
        for block in range(blocks):
            mine, theirs = f"stage{stage}_{block}", f"layer{stage}.{block}"
            for number in (1, 2, 3):
                yield from step(
                    f"{mine}/conv{number}", f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{mine}/norm{number}"
                )
            if not block:  # the first of a stage widens
                yield from step(
                    f"{mine}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{mine}/shortcut_norm"
                )
    pool, theirs, heads = "vision/pool", "visual.attnpool", image["heads"]
    yield Entry(f"{pool}/positions", (f"{theirs}.positional_embedding",))
    for name in "qkv":
        yield Entry(f"{pool}/attention/{name}/kernel", (f"{theirs}.{name}_proj.weight",), "heads_out", heads)
        yield Entry(f"{pool}/attention/{name}/bias", (f"{theirs}.{name}_proj.bias",), "heads_bias", heads)
    yield from linear(f"{pool}/attention/out", f"{theirs}.c_proj", "heads_in", heads)


def options(tensors: Mapping[str, Tensor], where: str) -> dict:
    """The model that the shapes tell of, with OpenAI's activation and width of a head.

    Raises LoadError if the names are not those of a CLIP.
    """
    needed = ("token_embedding.weight", "positional_embedding", "text_projection", "visual.conv1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise LoadError(f"{where} is no CLIP of OpenAI's kind: it has no {missing[0]}")
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
            "heads": heads(width, _HEAD_WIDTH, where),
            "mlp_ratio": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        }
    else:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        layers = tuple(_count(tensors, rf"^visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        image = {"tower": "resnet", "size": grid * 32, "width": width, "layers": layers}
        image["heads"] = heads(width * 32, _HEAD_WIDTH, where)
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "image": image,
        "text": {
            "context_length": context,
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "depth": text_depth,
            "heads": heads(text_width, _HEAD_WIDTH, where),
            "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / text_width,
            "pool": "argmax",
        },
        "activation": "quick_gelu",
        "loss": "softmax",
    }


def heads(width: int, head_width: int, where: str) -> int:
    """Attention heads of a tower. LoadError where no whole number of them makes up its width."""
    number = width // head_width if head_width else 0
    if not number or width % number:
        raise LoadError(
            f"{where}: a width of {width} cannot be split into heads of {head_width} (open_clip's head_width; OpenAI's 64)"
        )
    return number


def _count(tensors: Mapping, pattern: str) -> int:
    found = {int(match[1]) for name in tensors if (match := re.match(pattern, name))}
    return len(found)
