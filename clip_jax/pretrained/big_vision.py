"""big_vision's `.npz` files of SigLIP: Flax parameters by path. A tokenizer lies beside them."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer
from train_jax.data.images import Preprocess
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, take
from train_jax.weights.tensors import Tensor, open_tensors

_HALF = (0.5, 0.5, 0.5)


def open_file(path: Path) -> Checkpoint | None:
    """The checkpoint in a `.npz` file; None for another kind of file."""
    if path.suffix != ".npz":
        return None
    tensors = open_tensors(path)
    where = str(path)
    model = options(tensors, where)
    return Checkpoint(
        name=where,
        kind="big_vision",
        model=model,
        tokenizer=open_tokenizer(path.parent, model),
        preprocess=Preprocess(model["image"]["size"], "squash", "bicubic", _HALF, _HALF),
        read=lambda: (take(tensors, entries(model), where), where),
    )


def options(tensors: Mapping[str, Tensor], where: str) -> dict:
    """The model that the shapes tell of; big_vision's layer norms have eps 1e-6, its GELU is the tanh one."""
    needed = (
        "params/img/embedding/kernel",
        "params/img/MAPHead_0/probe",
        "params/txt/Embed_0/embedding",
        "params/t",
        "params/b",
    )
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise LoadError(f"{where} is no SigLIP of big_vision: it has no {missing[0]}")

    def tower(block: str, width: int) -> dict:
        found = {int(m[1]) for name in tensors if (m := re.match(rf"^params/{block}_(\d+)/", name))}
        query = tensors[f"params/{block}_0/MultiHeadDotProductAttention_0/query/kernel"]
        hidden = tensors[f"params/{block}_0/MlpBlock_0/Dense_0/kernel"]
        return {"width": width, "depth": len(found), "heads": query.shape[1], "mlp_ratio": hidden.shape[1] / width}

    patch, _, _, width = tensors["params/img/embedding/kernel"].shape
    grid = math.isqrt(tensors["params/img/pos_embedding"].shape[1])
    rows, text_width = tensors["params/txt/Embed_0/embedding"].shape
    return {
        "embed_dim": tensors["params/txt/head/kernel"].shape[1],
        "image": {
            **tower("img/Transformer/encoderblock", width),
            "size": grid * patch,
            "patch": patch,
            "stem_bias": True,
            "pool": "map",
            "pre_norm": False,
            "proj": False,
        },
        "text": {
            **tower("txt/Encoder_0/encoderblock", text_width),
            "context_length": tensors["params/txt/pos_embedding"].shape[1],
            "vocab_size": rows,
            "causal": False,
            "pool": "last",
            "proj_bias": True,
        },
        "activation": "gelu_tanh",
        "eps": 1e-6,
        "loss": "sigmoid",
    }


def entries(model: Mapping) -> list[Entry]:
    head = "params/img/MAPHead_0"
    return [
        *_plain("vision/stem", "params/img/embedding"),
        Entry("vision/positions", ("params/img/pos_embedding",), "rows"),
        *_blocks("vision", "params/img/Transformer", model["image"]["depth"]),
        *_plain("vision/norm_post", "params/img/Transformer/encoder_norm", "scale"),
        Entry("vision/head/probe", (f"{head}/probe",), "row"),
        *_attention("vision/head/attention", f"{head}/MultiHeadDotProductAttention_0"),
        *_plain("vision/head/norm", f"{head}/LayerNorm_0", "scale"),
        *_mlp("vision/head", f"{head}/MlpBlock_0"),
        Entry("text/tokens", ("params/txt/Embed_0/embedding",)),
        Entry("text/positions", ("params/txt/pos_embedding",), "rows"),
        *_blocks("text", "params/txt/Encoder_0", model["text"]["depth"]),
        *_plain("text/norm_post", "params/txt/Encoder_0/encoder_norm", "scale"),
        *_plain("text/proj", "params/txt/head"),
        Entry("logit_scale", ("params/t",), "number"),
        Entry("logit_bias", ("params/b",), "number"),
    ]


def _plain(ours: str, theirs: str, weight: str = "kernel") -> Iterator[Entry]:
    yield Entry(f"{ours}/{weight}", (f"{theirs}/{weight}",))
    yield Entry(f"{ours}/bias", (f"{theirs}/bias",))


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    parts = [f"{theirs}/{part}" for part in ("query", "key", "value")]
    yield Entry(f"{ours}/qkv/kernel", tuple(f"{part}/kernel" for part in parts), "stack_second")
    yield Entry(f"{ours}/qkv/bias", tuple(f"{part}/bias" for part in parts), "stack_first")
    yield from _plain(f"{ours}/out", f"{theirs}/out")


def _mlp(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _plain(f"{ours}/mlp_in", f"{theirs}/Dense_0")
    yield from _plain(f"{ours}/mlp_out", f"{theirs}/Dense_1")


def _blocks(ours: str, theirs: str, depth: int) -> Iterator[Entry]:
    for number in range(depth):
        mine, block = f"{ours}/transformer/block_{number}", f"{theirs}/encoderblock_{number}"
        yield from _plain(f"{mine}/norm1", f"{block}/LayerNorm_0", "scale")
        yield from _attention(f"{mine}/attention", f"{block}/MultiHeadDotProductAttention_0")
        yield from _plain(f"{mine}/norm2", f"{block}/LayerNorm_1", "scale")
        yield from _mlp(mine, f"{block}/MlpBlock_0")
