"""Checkpoints of diffusers' VQModel: config.json and diffusion_pytorch_model.safetensors (or .fp16.safetensors, .bin)."""

import re
from collections.abc import Mapping
from pathlib import Path

from train_jax.errors import LoadError
from train_jax.weights.layout import Entry, from_peer, unflatten
from train_jax.weights.tensors import open_tensors
from vqgan_jax.pretrained import taming
from vqgan_jax.pretrained.checkpoint import Checkpoint, convert_errors, read_config

WEIGHTS = "diffusion_pytorch_model"
_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
_BLOCKS = {
    "DownEncoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
    "UpDecoderBlock2D": False,
    "AttnUpDecoderBlock2D": True,
}
# Supported values of some options of VQModel; the first value is the default.
_FIXED = {
    "act_fn": ("silu", "swish"), "norm_type": ("group", "spatial"), "in_channels": (3,), "out_channels": (3,)
}  # fmt: skip
_DEFAULTS = {
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64],
    "layers_per_block": 1, "latent_channels": 3, "sample_size": 32, "num_vq_embeddings": 256, "norm_num_groups": 32,
    "vq_embed_dim": None, "mid_block_add_attention": True, "norm_type": "group",
}  # fmt: skip
_IGNORED = {"force_upcast", "lookup_from_codebook", "scaling_factor"}  # of 16 bits, and of pipelines
_SPATIAL_GROUPS = 32  # of the decoder's norms with norm_type spatial
# Names of attention layers in diffusers until version 0.16 -> names since then.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def open_directory(path: Path) -> Checkpoint | None:
    """Opens the checkpoint in a directory or a folder of a pipeline; returns None unless config.json is of a VQModel."""
    folders = (path, path / "vqvae", path / "movq")
    folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if folder is None:
        return None
    config = read_config(folder / "config.json")
    if config.get("_class_name") != "VQModel":
        return None
    with convert_errors(folder):
        model = convert_config(config, folder)
    weights = find_weights(folder)
    tensors = {_modernize_name(name): x for name, x in open_tensors(weights).items()}

    def read() -> tuple[dict, str]:
        return {"params": unflatten(from_peer(tensors, build_entries(model), str(weights)), False)}, str(path)

    return Checkpoint(name=str(path), format="diffusers VQModel", model=model, read=read)


def find_weights(folder: Path) -> Path:
    """Returns the weight file in the directory of a model. Raises LoadError if there is none."""
    for ending in _ENDINGS:
        if (folder / f"{WEIGHTS}{ending}").is_file():
            return folder / f"{WEIGHTS}{ending}"
    raise LoadError(f"{folder} lacks its weights: {' or '.join(f'{WEIGHTS}{end}' for end in _ENDINGS)}")


def _modernize_name(name: str) -> str:
    old = "|".join(_OLD_NAMES)
    return re.sub(rf"(\.attentions\.\d+)\.({old})\.", lambda match: f"{match[1]}.{_OLD_NAMES[match[2]]}.", name)


def convert_config(config: Mapping, path: Path) -> dict:
    """Converts a configuration of VQModel to `VQGANOptions`, as a dict."""
    known = _FIXED.keys() | _DEFAULTS.keys() | _IGNORED
    if unknown := sorted(key for key in config.keys() - known if not key.startswith("_")):
        raise LoadError(f"{path}: VQModel with {', '.join(unknown)}; what is understood: {', '.join(sorted(known))}")
    for key, values in _FIXED.items():
        if config.get(key, values[0]) not in values:
            raise LoadError(f"{path}: {key} = {config[key]!r}; only {' or '.join(map(repr, values))} is supported")
    config = _DEFAULTS | config
    block_types = [*config["down_block_types"], *reversed(config["up_block_types"])]
    for block_type in block_types:
        if block_type not in _BLOCKS:
            raise LoadError(f"{path}: unknown block type {block_type!r}; supported are {', '.join(_BLOCKS)}")
    count = len(config["down_block_types"])
    has_attention = [_BLOCKS[block_type] for block_type in block_types]
    if has_attention[:count] != has_attention[count:]:
        raise LoadError(f"{path}: encoder and decoder have attention at different levels, which is not supported")
    layout = "movq" if config["norm_type"] == "spatial" else "taming"
    if layout == "movq" and config["norm_num_groups"] != _SPATIAL_GROUPS:
        raise LoadError(
            f"{path}: norm_num_groups = {config['norm_num_groups']}; with spatial norms, which always have "
            f"{_SPATIAL_GROUPS} groups, only {_SPATIAL_GROUPS} is supported"
        )
    channels = config["block_out_channels"]
    first = channels[0]
    if any(c % first for c in channels):
        raise LoadError(f"{path}: block_out_channels {channels} must be multiples of the first")
    factor = 2 ** (count - 1)
    size = config["sample_size"] or 0
    # Many files contain the default sample_size of 32 instead of the training size: sizes below 8 x 8 codes are ignored.
    size = size if size % factor == 0 and size >= 8 * factor else 16 * factor
    dim = config["vq_embed_dim"] or config["latent_channels"]
    return {
        "layout": layout,
        "channels": first,
        "multipliers": tuple(c // first for c in channels),
        "blocks": config["layers_per_block"],
        "resolution": size,
        "attention": tuple(size >> level for level in range(count) if has_attention[level]),
        "z_channels": config["latent_channels"],
        "groups": config["norm_num_groups"],
        "middle_attention": config["mid_block_add_attention"],
        "quantizer": {"type": "nearest", "size": config["num_vq_embeddings"], "dim": dim},
    }


def export_config(model: Mapping) -> dict:
    """Converts `VQGANOptions`, as a dict, to a configuration of VQModel."""
    count = len(model["multipliers"])
    has_attention = [model["resolution"] >> level in tuple(model["attention"]) for level in range(count)]
    return {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in has_attention],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in reversed(has_attention)],
        "block_out_channels": [model["channels"] * m for m in model["multipliers"]],
        "layers_per_block": model["blocks"],
        "act_fn": "silu",
        "latent_channels": model["z_channels"],
        "sample_size": model["resolution"],
        "num_vq_embeddings": model["quantizer"]["size"],
        "vq_embed_dim": model["quantizer"]["dim"],
        "norm_num_groups": model["groups"],
        "norm_type": taming.find_layout(model).norm,
        "mid_block_add_attention": model["middle_attention"],
        "scaling_factor": 1.0,
    }


def build_entries(model: Mapping) -> list[Entry]:
    """Returns the weight table: taming's table with diffusers' names."""
    last = len(model["multipliers"]) - 1
    return [
        Entry(entry.ours, tuple(_rename(name, last) for name in entry.theirs), _layout_kind(entry), entry.heads)
        for entry in taming.build_entries(model)
    ]


def _layout_kind(entry: Entry) -> str:
    *_, layer, leaf = entry.ours.split("/")
    return "linear_to_conv1x1" if layer in ("q", "k", "v", "out") and leaf == "kernel" else entry.kind


def _rename(name: str, last: int) -> str:
    parts = name.split(".")
    if parts[1] in ("down", "up"):
        direction, level, part, *tail = parts[1:]
        index = int(level) if direction == "down" else last - int(level)
        name = {"block": "resnets", "attn": "attentions"}.get(part)
        middle = [name, *tail] if name else [f"{direction}samplers", "0", *tail]
        parts = [parts[0], f"{direction}_blocks", str(index), *middle]
    elif parts[1] == "mid":
        middle = {"block_1": ("resnets", "0"), "attn_1": ("attentions", "0"), "block_2": ("resnets", "1")}[parts[2]]
        parts = [parts[0], "mid_block", *middle, *parts[3:]]
    elif parts[1] == "norm_out":
        parts[1] = "conv_norm_out"
    if "attentions" in parts:
        names = {"q": ["to_q"], "k": ["to_k"], "v": ["to_v"], "proj_out": ["to_out", "0"]}
        names["norm"] = ["group_norm" if parts[-2] == "norm" else "spatial_norm"]
        layer = parts.index("attentions") + 2
        parts = [*parts[:layer], *names[parts[layer]], *parts[layer + 1 :]]
    return ".".join("conv_shortcut" if part == "nin_shortcut" else part for part in parts)
