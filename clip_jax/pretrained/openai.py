"""Parameter names of openai/CLIP and open_clip, and model options inferred from shapes.

`list_entries` is the table of names. `infer_options` infers the sizes of a model, since OpenAI's files have no config.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from train_jax.errors import LoadError
from train_jax.weights.layout import STATS, Entry
from train_jax.weights.tensors import Tensor

ANCHOR = "visual.conv1.weight"  # present in every model; identifies the format
_HEAD_WIDTH = 64
IGNORED = (r"^(input_resolution|context_length|vocab_size)$", r"num_batches_tracked$", r"attn_mask$")


def list_entries(
    model: Mapping, image_entries: Iterable[Entry] | None = None, text_entries: Iterable[Entry] | None = None
) -> list[Entry]:
    """Lists the parameters of a model with their names in openai/CLIP. `model` has the options of `CLIPOptions`.

    Args:
      image_entries, text_entries: parameters of a tower with other names.
    """
    image = model["image"]
    if image_entries is None:
        image_entries = _resnet_entries(image) if image["tower"] == "resnet" else _vit_entries(image)
    if text_entries is None:
        text_entries = list_text_entries(model["text"])
    table = [*image_entries, *text_entries, Entry("logit_scale", ("logit_scale",), "scalar")]
    if model["loss"] == "sigmoid":
        table.append(Entry("logit_bias", ("logit_bias",), "scalar"))
    return table


def list_text_entries(text: Mapping) -> Iterator[Entry]:
    """Yields the parameters of a text tower with their names in openai/CLIP. `text` has the options of `TextOptions`."""
    yield Entry("text/tokens", ("token_embedding.weight",))
    yield Entry("text/positions", ("positional_embedding",))
    if text.get("pool") == "cls":
        yield Entry("text/cls", ("cls_emb",))
    yield from _block_entries("text/transformer", "transformer", text)
    yield from norm_entries("text/norm_post", "ln_final")
    if text.get("proj_bias"):
        yield from linear_entries("text/proj", "text_projection")
    elif text.get("proj", True):
        yield Entry("text/proj/kernel", ("text_projection",))


def norm_entries(ours: str, theirs: str) -> Iterator[Entry]:
    """Yields the entries of a norm layer, which has PyTorch's `weight` and `bias`."""
    yield Entry(f"{ours}/scale", (f"{theirs}.weight",))
    yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def batch_norm_entries(ours: str, theirs: str) -> Iterator[Entry]:
    """Yields the entries of a batch norm, which has running statistics, too."""
    yield from norm_entries(ours, theirs)
    yield Entry(f"{STATS}{ours}/mean", (f"{theirs}.running_mean",))
    yield Entry(f"{STATS}{ours}/var", (f"{theirs}.running_var",))


def linear_entries(
    ours: str, theirs: str, kind: str = "linear", heads: int = 0, bias: bool = True
) -> Iterator[Entry]:
    """Yields the entries of a dense layer or convolution, which has PyTorch's `weight` and perhaps `bias`."""
    yield Entry(f"{ours}/kernel", (f"{theirs}.weight",), kind, heads)
    if bias:
        yield Entry(f"{ours}/bias", (f"{theirs}.bias",))


def attention_entries(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Yields the entries of PyTorch's `nn.MultiheadAttention` for `nn_jax.attention.SelfAttention`."""
    yield Entry(f"{ours}/qkv/kernel", (f"{theirs}.in_proj_weight",), "qkv", heads)
    yield Entry(f"{ours}/qkv/bias", (f"{theirs}.in_proj_bias",), "qkv_bias", heads)
    yield from linear_entries(f"{ours}/out", f"{theirs}.out_proj", "merge_heads", heads)


def cross_attention_entries(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Yields the entries of `nn.MultiheadAttention` for `nn_jax.attention.CrossAttention`, with separate q, k and v."""
    for qkv_index, name in enumerate("qkv"):
        yield Entry(f"{ours}/{name}/kernel", (f"{theirs}.in_proj_weight",), "split_heads", heads, qkv_index)
        yield Entry(f"{ours}/{name}/bias", (f"{theirs}.in_proj_bias",), "heads_bias", heads, qkv_index)
    yield from linear_entries(f"{ours}/out", f"{theirs}.out_proj", "merge_heads", heads)


def _block_entries(ours: str, theirs: str, tower: Mapping) -> Iterator[Entry]:
    for index in range(tower["depth"]):
        mine, block = f"{ours}/block_{index}", f"{theirs}.resblocks.{index}"
        yield from norm_entries(f"{mine}/norm1", f"{block}.ln_1")
        yield from attention_entries(f"{mine}/attention", f"{block}.attn", tower["heads"])
        if tower.get("qk_norm"):
            for name in "qk":
                yield from norm_entries(f"{mine}/attention/{name}_norm", f"{block}.attn.ln_{name}")
        yield from norm_entries(f"{mine}/norm2", f"{block}.ln_2")
        yield from linear_entries(f"{mine}/mlp_in", f"{block}.mlp.c_fc")
        yield from linear_entries(f"{mine}/mlp_out", f"{block}.mlp.c_proj")


def _vit_entries(image: Mapping) -> Iterator[Entry]:
    yield Entry("vision/stem/kernel", ("visual.conv1.weight",), "conv")
    yield Entry("vision/cls", ("visual.class_embedding",))
    yield Entry("vision/positions", ("visual.positional_embedding",))
    if image.get("pre_norm", True):
        yield from norm_entries("vision/norm_pre", "visual.ln_pre")
    yield from _block_entries("vision/transformer", "visual.transformer", image)
    if image.get("pool") == "query":
        yield from _pooler_entries("vision/head", "visual.attn_pool", image["pool_heads"])
    yield from norm_entries("vision/norm_post", "visual.ln_post")
    yield Entry("vision/proj/kernel", ("visual.proj",))


def _pooler_entries(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Yields the entries of CoCa's attentional pooler, of whose queries the first is that of the contrastive loss."""
    yield Entry(f"{ours}/query", (f"{theirs}.query",), "first_row")
    yield from norm_entries(f"{ours}/norm_query", f"{theirs}.ln_q")
    yield from norm_entries(f"{ours}/norm", f"{theirs}.ln_k")
    for index, name in enumerate("qkv"):
        yield Entry(f"{ours}/attention/{name}/kernel", (f"{theirs}.attn.{name}_proj_weight",), "split_heads", heads)
        yield Entry(f"{ours}/attention/{name}/bias", (f"{theirs}.attn.in_proj_bias",), "heads_bias", heads, index)
    yield from linear_entries(f"{ours}/attention/out", f"{theirs}.attn.out_proj", "merge_heads", heads)


def _resnet_entries(image: Mapping) -> Iterator[Entry]:
    def conv_and_norm(conv: str, their_conv: str, their_norm: str, batch_norm: str) -> Iterator[Entry]:
        yield Entry(f"vision/{conv}/kernel", (f"visual.{their_conv}.weight",), "conv")
        yield from batch_norm_entries(f"vision/{batch_norm}", f"visual.{their_norm}")

    for index in (1, 2, 3):
        yield from conv_and_norm(f"conv{index}", f"conv{index}", f"bn{index}", f"norm{index}")
    for stage, blocks in enumerate(image["layers"], 1):
        for block in range(blocks):
            mine, theirs = f"stage{stage}_{block}", f"layer{stage}.{block}"
            for index in (1, 2, 3):
                yield from conv_and_norm(
                    f"{mine}/conv{index}", f"{theirs}.conv{index}", f"{theirs}.bn{index}", f"{mine}/norm{index}"
                )
            if not block:  # the first block of a stage has a projected shortcut
                yield from conv_and_norm(
                    f"{mine}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{mine}/shortcut_norm"
                )
    pool, theirs, heads = "vision/pool", "visual.attnpool", image["heads"]
    yield Entry(f"{pool}/positions", (f"{theirs}.positional_embedding",))
    for name in "qkv":
        yield Entry(f"{pool}/attention/{name}/kernel", (f"{theirs}.{name}_proj.weight",), "split_heads", heads)
        yield Entry(f"{pool}/attention/{name}/bias", (f"{theirs}.{name}_proj.bias",), "heads_bias", heads)
    yield from linear_entries(f"{pool}/attention/out", f"{theirs}.c_proj", "merge_heads", heads)


def infer_options(tensors: Mapping[str, Tensor], source: str) -> dict:
    """Infers the model options from tensor shapes. The activation and the head width are OpenAI's.

    Raises LoadError if the names are not those of a CLIP.
    """
    required = ("token_embedding.weight", "positional_embedding", "text_projection", "visual.conv1.weight")
    missing = [name for name in required if name not in tensors]
    if missing:
        raise LoadError(f"{source} is not a CLIP in OpenAI's format: it has no {missing[0]}")
    context, text_width = tensors["positional_embedding"].shape
    text_depth = _count_indices(tensors, r"^transformer\.resblocks\.(\d+)\.")
    if "visual.proj" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
        image = {
            "tower": "vit",
            "size": grid * patch,
            "patch": patch,
            "width": width,
            "depth": _count_indices(tensors, r"^visual\.transformer\.resblocks\.(\d+)\."),
            "heads": count_heads(width, _HEAD_WIDTH, source),
            "mlp_ratio": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        }
    else:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
        layers = tuple(_count_indices(tensors, rf"^visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        image = {"tower": "resnet", "size": grid * 32, "width": width, "layers": layers}
        image["heads"] = count_heads(width * 32, _HEAD_WIDTH, source)
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "image": image,
        "text": {
            "context_length": context,
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "depth": text_depth,
            "heads": count_heads(text_width, _HEAD_WIDTH, source),
            "mlp_ratio": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / text_width,
            "pool": "argmax",
        },
        "activation": "quick_gelu",
        "loss": "softmax",
    }


def count_heads(width: int, head_width: int, source: str) -> int:
    """Computes the number of attention heads of a tower. Raises LoadError if it does not divide the width."""
    num_heads = width // head_width if head_width else 0
    if not num_heads or width % num_heads:
        raise LoadError(
            f"{source}: a width of {width} cannot be split into heads of {head_width} (open_clip's head_width; "
            "OpenAI's 64)"
        )
    return num_heads


def _count_indices(tensors: Mapping, pattern: str) -> int:
    return len({int(match[1]) for name in tensors if (match := re.match(pattern, name))})
