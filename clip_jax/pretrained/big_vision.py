"""SigLIP checkpoints of big_vision: `.npz` files of Flax parameters by path, with a tokenizer in the same directory."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from clip_jax.pretrained.checkpoint import Checkpoint
from clip_jax.pretrained.hugging_face import open_tokenizer
from train_jax.data.images import NATIVE, Preprocess
from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer
from train_jax.weights.tensors import Tensor, open_tensors

_HALF = (0.5, 0.5, 0.5)


def open_file(path: Path) -> Checkpoint:
    """Opens the checkpoint in a `.npz` file of big_vision."""
    tensors, source = _unroll_blocks(open_tensors(path)), str(path)
    model = infer_options(tensors, source)
    return Checkpoint(
        name=source,
        kind="big_vision",
        model=model,
        tokenizer=open_tokenizer(path.parent, model),
        preprocess=_make_preprocess(model["image"]),
        read=lambda: (from_peer(tensors, list_entries(model), source), source),
        files=f"{path.name} (activation and preprocessing: big_vision's)",
    )


def _make_preprocess(image: Mapping) -> Preprocess:
    """Makes the preprocessing of big_vision's demos and evaluations of SigLIP."""
    if image.get("native"):  # `resize_to_sequence(patch, max_patches)`, which is antialiased
        max_patches = (image["size"] // image["patch"]) ** 2
        return Preprocess(image["size"], NATIVE, "bilinear", _HALF, _HALF, image["patch"], max_patches)
    return Preprocess(image["size"], "squash", "bilinear_aliased", _HALF, _HALF)  # `resize(size)`


def _unroll_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits the tensors of stacked blocks (`scan=True`) into one tensor per block, with unrolled names."""
    unrolled = {}
    for name, x in tensors.items():
        match = re.match(r"^(.*/encoderblock)(/.*)$", name)
        if match is None:
            unrolled[name] = x
            continue
        load = functools.cache(x.load)  # read a stacked tensor once, not once per block
        for index in range(x.shape[0]):
            block = functools.partial(lambda load, index: load()[index], load, index)
            unrolled[f"{match[1]}_{index}{match[2]}"] = Tensor(x.shape[1:], block)
    return unrolled


def infer_options(tensors: Mapping[str, Tensor], source: str) -> dict:
    """Infers the model options from tensor shapes.

    Layer norms have big_vision's eps of 1e-6, MLPs the tanh approximation of GELU. Raises LoadError if the tensors are
    not those of a SigLIP.
    """
    required = (
        "params/img/embedding/kernel",
        "params/img/MAPHead_0/probe",
        "params/txt/Embed_0/embedding",
        "params/t",
        "params/b",
    )
    missing = [name for name in required if name not in tensors]
    if missing:
        raise LoadError(f"{source} is not a SigLIP of big_vision: it has no {missing[0]}")
    stem, positions = tensors["params/img/embedding/kernel"].shape, tensors["params/img/pos_embedding"].shape
    patch, grid = _infer_grid(stem, positions, source)

    def tower(block: str, width: int) -> dict:
        blocks = {int(m[1]) for name in tensors if (m := re.match(rf"^params/{block}_(\d+)/", name))}
        if not blocks:
            raise LoadError(f"{source} is not a SigLIP of big_vision: it has no params/{block}_0")
        query = tensors[f"params/{block}_0/MultiHeadDotProductAttention_0/query/kernel"]
        hidden = tensors[f"params/{block}_0/MlpBlock_0/Dense_0/kernel"]
        return {"width": width, "depth": len(blocks), "heads": query.shape[1], "mlp_ratio": hidden.shape[1] / width}

    width = stem[-1]
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
            **({"native": True} if len(stem) == 2 else {}),
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


def _infer_grid(stem: tuple[int, ...], positions: tuple[int, ...], source: str) -> tuple[int, int]:
    """Infers the sides of a patch and of the grid of positions: [1, places, width], or [rows, columns, width] of NaFlex."""
    if len(stem) == 2 and len(positions) == 3:
        patch, sides = math.isqrt(stem[0] // 3), positions[:2]
        is_square = 3 * patch * patch == stem[0] and sides[0] == sides[1]
    elif len(stem) == 4 and len(positions) == 3:
        patch, sides = stem[0], (math.isqrt(positions[1]),)
        is_square = stem[0] == stem[1] and sides[0] ** 2 == positions[1]
    else:
        is_square = False
    if not is_square:
        raise LoadError(f"{source}: patches {list(stem)} and positions {list(positions)} are not those of a square grid")
    return patch, sides[0]


def list_entries(model: Mapping) -> list[Entry]:
    """Lists the parameters of a model with their names in big_vision. `model` has the options of `CLIPOptions`."""
    head = "params/img/MAPHead_0"
    return [
        *_layer_entries("vision/stem", "params/img/embedding"),
        Entry("vision/positions", ("params/img/pos_embedding",), "grid" if model["image"].get("native") else "rows"),
        *_block_entries("vision", "params/img/Transformer", model["image"]["depth"]),
        *_layer_entries("vision/norm_post", "params/img/Transformer/encoder_norm", "scale"),
        Entry("vision/head/probe", (f"{head}/probe",), "row"),
        *_cross_attention_entries("vision/head/attention", f"{head}/MultiHeadDotProductAttention_0"),
        *_layer_entries("vision/head/norm", f"{head}/LayerNorm_0", "scale"),
        *_mlp_entries("vision/head", f"{head}/MlpBlock_0"),
        Entry("text/tokens", ("params/txt/Embed_0/embedding",)),
        Entry("text/positions", ("params/txt/pos_embedding",), "rows"),
        *_block_entries("text", "params/txt/Encoder_0", model["text"]["depth"]),
        *_layer_entries("text/norm_post", "params/txt/Encoder_0/encoder_norm", "scale"),
        *_layer_entries("text/proj", "params/txt/head"),
        Entry("logit_scale", ("params/t",), "scalar"),
        Entry("logit_bias", ("params/b",), "scalar"),
    ]


def _layer_entries(ours: str, theirs: str, weight: str = "kernel") -> Iterator[Entry]:
    yield Entry(f"{ours}/{weight}", (f"{theirs}/{weight}",))
    yield Entry(f"{ours}/bias", (f"{theirs}/bias",))


def _attention_entries(ours: str, theirs: str) -> Iterator[Entry]:
    qkv = [f"{theirs}/{part}" for part in ("query", "key", "value")]
    yield Entry(f"{ours}/qkv/kernel", tuple(f"{part}/kernel" for part in qkv), "stack_second")
    yield Entry(f"{ours}/qkv/bias", tuple(f"{part}/bias" for part in qkv), "stack_first")
    yield from _layer_entries(f"{ours}/out", f"{theirs}/out")


def _cross_attention_entries(ours: str, theirs: str) -> Iterator[Entry]:
    for name, part in zip("qkv", ("query", "key", "value"), strict=True):
        yield from _layer_entries(f"{ours}/{name}", f"{theirs}/{part}")
    yield from _layer_entries(f"{ours}/out", f"{theirs}/out")


def _mlp_entries(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _layer_entries(f"{ours}/mlp_in", f"{theirs}/Dense_0")
    yield from _layer_entries(f"{ours}/mlp_out", f"{theirs}/Dense_1")


def _block_entries(ours: str, theirs: str, depth: int) -> Iterator[Entry]:
    for index in range(depth):
        mine, block = f"{ours}/transformer/block_{index}", f"{theirs}/encoderblock_{index}"
        yield from _layer_entries(f"{mine}/norm1", f"{block}/LayerNorm_0", "scale")
        yield from _attention_entries(f"{mine}/attention", f"{block}/MultiHeadDotProductAttention_0")
        yield from _layer_entries(f"{mine}/norm2", f"{block}/LayerNorm_1", "scale")
        yield from _mlp_entries(mine, f"{block}/MlpBlock_0")
