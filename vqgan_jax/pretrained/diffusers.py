"""Directories of diffusers' VQModel: config.json and diffusion_pytorch_model.safetensors (or .bin)."""

import json
from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, nested, take
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import Checkpoint

WEIGHTS = "diffusion_pytorch_model"
_BLOCKS = {
    "DownEncoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
    "UpDecoderBlock2D": False,
    "AttnUpDecoderBlock2D": True,
}
# What a VQModel may say and only one value of which is built here.
_FIXED = {"act_fn": "silu", "norm_type": "group", "in_channels": 3, "out_channels": 3, "lookup_from_codebook": False}


def open_directory(path: Path) -> Checkpoint | None:
    """The checkpoint in a directory; None if its config.json is not one of VQModel."""
    file = path / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text("utf-8"))
    if config.get("_class_name") != "VQModel":
        return None
    model = options(config, file)
    files = [path / f"{WEIGHTS}.safetensors", path / f"{WEIGHTS}.bin"]
    weights = next((f for f in files if f.is_file()), None)
    if weights is None:
        raise LoadError(f"{path} lacks its weights: {' or '.join(f.name for f in files)}")
    tensors = open_tensors(weights)

    def read() -> tuple[dict, str]:
        return {"params": nested(take(tensors, entries(model), str(weights)), False)}, str(path)

    return Checkpoint(name=str(path), kind="diffusers VQModel", model=model, read=read)


def options(config: Mapping, where: Path) -> dict:
    """Our options out of a VQModel's configuration."""
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise LoadError(f"{where}: {key} = {config[key]!r}; only {value!r} is built here")
    if not config.get("mid_block_add_attention", True):
        raise LoadError(f"{where}: mid_block_add_attention = False; only True is built here")
    kinds = [*config["down_block_types"], *reversed(config["up_block_types"])]
    for kind in kinds:
        if kind not in _BLOCKS:
            raise LoadError(f"{where}: a block of kind {kind!r}; known are {', '.join(_BLOCKS)}")
    count = len(config["down_block_types"])
    attends = [_BLOCKS[kind] for kind in kinds]
    if attends[:count] != attends[count:]:
        raise LoadError(f"{where}: encoder and decoder have attention at different levels, which is not built here")
    channels = config["block_out_channels"]
    first = channels[0]
    if any(c % first for c in channels):
        raise LoadError(f"{where}: block_out_channels {channels} are no multiples of the first")
    factor = 2 ** (count - 1)
    size = config.get("sample_size") or 32
    size = size if size % factor == 0 else 16 * factor
    dim = config.get("vq_embed_dim") or config["latent_channels"]
    return {
        "channels": first,
        "multipliers": tuple(c // first for c in channels),
        "blocks": config["layers_per_block"],
        "resolution": size,
        "attention": tuple(size >> level for level in range(count) if attends[level]),
        "z_channels": config["latent_channels"],
        "groups": config.get("norm_num_groups", 32),
        "quantizer": {"type": "nearest", "size": config["num_vq_embeddings"], "dim": dim},
    }


def config(model: Mapping) -> dict:
    """A VQModel's configuration, for our options."""
    count = len(model["multipliers"])
    attends = [model["resolution"] >> level in tuple(model["attention"]) for level in range(count)]
    return {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attends],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in reversed(attends)],
        "block_out_channels": [model["channels"] * m for m in model["multipliers"]],
        "layers_per_block": model["blocks"],
        "act_fn": "silu",
        "latent_channels": model["z_channels"],
        "sample_size": model["resolution"],
        "num_vq_embeddings": model["quantizer"]["size"],
        "vq_embed_dim": model["quantizer"]["dim"],
        "norm_num_groups": model["groups"],
        "scaling_factor": 1.0,
    }


def entries(model: Mapping) -> list[Entry]:
    """The table of names: taming's, renamed."""
    last = len(model["multipliers"]) - 1
    return [
        Entry(entry.ours, tuple(_renamed(name, last) for name in entry.theirs), _kind(entry), entry.heads)
        for entry in taming.entries(model)
    ]


def _kind(entry: Entry) -> str:
    attention = "attention" in entry.ours and entry.kind == "conv"
    return "point" if attention else entry.kind


def _renamed(name: str, last: int) -> str:
    parts = name.split(".")
    if parts[1] in ("down", "up"):
        way, level, part, *rest = parts[1:]
        number = int(level) if way == "down" else last - int(level)
        name = {"block": "resnets", "attn": "attentions"}.get(part)
        middle = [name, *rest] if name else [f"{way}samplers", "0", *rest]
        parts = [parts[0], f"{way}_blocks", str(number), *middle]
    elif parts[1] == "mid":
        place = {"block_1": ("resnets", "0"), "attn_1": ("attentions", "0"), "block_2": ("resnets", "1")}[parts[2]]
        parts = [parts[0], "mid_block", *place, *parts[3:]]
    elif parts[1] == "norm_out":
        parts[1] = "conv_norm_out"
    if "attentions" in parts:
        swap = {"norm": ["group_norm"], "q": ["to_q"], "k": ["to_k"], "v": ["to_v"], "proj_out": ["to_out", "0"]}
        parts = [*parts[:-2], *swap[parts[-2]], parts[-1]]
    return ".".join("conv_shortcut" if part == "nin_shortcut" else part for part in parts)
